"""Answers `verl_reward` over a socket: the job's own reward, asked of the reward service as every trainer asks it."""

from __future__ import annotations

import json
import shutil
import socketserver
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from services.gpu_agent.trainers.rewarding import Scorer
from services.gpu_agent.trainers.rollouts import Rollout, RolloutPrompt

TRIES: Final = 4
FIRST_PAUSE: Final = 1.0


@contextmanager
def serving(scorer: Scorer) -> Iterator[Path]:
    """Serve in threads; give the socket's path, which is short wherever the job's folder lies."""
    folder = Path(tempfile.mkdtemp(prefix="trainyard-"))  # for this user alone
    path = folder / "judge"

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            answer = judge(scorer, json.loads(self.rfile.readline()))
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        request_queue_size = 256

    try:
        with Server(str(path), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
            thread.start()
            yield path
            server.shutdown()
            thread.join()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def judge(scorer: Scorer, asked: dict[str, Any]) -> dict[str, Any]:
    """Return {"score", "acc"}, or {"error"} where nobody can say after TRIES."""
    row = json.loads(asked["row"])
    prompt = row.get("prompt", "")
    shown = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    rollout = Rollout(
        RolloutPrompt(0, shown, (), shown, asked["solution"], row), asked["completion"]
    )
    pause, why = FIRST_PAUSE, ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(pause)
            pause *= 2
        (verdict,) = scorer.score([rollout])
        if verdict.reward is not None:
            measured = scorer.plan.measured(verdict)
            right = measured is not None and measured >= scorer.plan.right_from
            return {"score": verdict.reward, "acc": float(right)}
        why = verdict.error or "unknown"
    return {"error": f"{why}, {TRIES} tries"}
