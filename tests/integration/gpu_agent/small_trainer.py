"""A trainer for tests: takes steps, writes what a real one writes, and misbehaves when `config` says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LAST_WORD_SECONDS = 200.0


def main() -> int:
    attempt_dir = Path(sys.argv[1])
    spec = json.loads((attempt_dir / "spec.json").read_text())
    config = spec["config"]
    secrets = {}
    if "--secrets-fd" in sys.argv:
        with os.fdopen(int(sys.argv[sys.argv.index("--secrets-fd") + 1]), "rb") as file:
            secrets = json.load(file)
    return Training(attempt_dir, config, secrets).run()


def run_attempt(attempt_dir: Path, secrets: dict[str, str]) -> int:
    """The zygote's entry."""
    spec = json.loads((attempt_dir / "spec.json").read_text())
    return Training(attempt_dir, spec["config"], secrets).run()


def read_secrets(descriptor: int) -> dict[str, str]:
    with os.fdopen(descriptor, "rb") as file:
        return json.load(file)


def preload() -> None:
    """Nothing to import."""


class Training:
    def __init__(self, attempt_dir: Path, config: dict, secrets: dict[str, str]) -> None:
        self.attempt_dir = attempt_dir
        self.config = config
        self.secrets = secrets
        self.stopped = False
        self.events = os.open(
            attempt_dir / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )

    def run(self) -> int:
        config = self.config
        if config.get("ignore_term"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            signal.signal(signal.SIGTERM, self._on_term)
        if config.get("leave_child"):
            subprocess.Popen(["sleep", "300"], start_new_session=config["leave_child"] == "session")
        if self.secrets:
            print("[INFO] secrets: " + ",".join(sorted(self.secrets)), flush=True)
            (self.attempt_dir / "secret-length").write_text(
                str({k: len(v) for k, v in self.secrets.items()})
            )
        total = config["steps"]
        for step in range(1, total + 1):
            self._step(step, total)
            if self.stopped:
                return self._result("stopped", step, total)
            if config.get("fail_at") == step:
                raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        if "ends_with" in config:
            self._wait_for(Path(config["ends_with"]))
        return self._result("completed", total, total)

    def _wait_for(self, file: Path) -> None:
        """Do not end before the test has made `file`."""
        deadline = time.monotonic() + LAST_WORD_SECONDS
        while not file.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{file} was never made")
            time.sleep(0.01)

    def _step(self, step: int, total: int) -> None:
        time.sleep(self.config.get("step_seconds", 0.01))
        now = time.time()
        self._event({"t": now, "type": "metric", "step": step, "metrics": {"loss": 1.0 / step}})
        self._event({"t": now, "type": "progress", "step": step, "total_steps": total})
        print(f"[INFO] Step {step}/{total}: loss={1.0 / step:.3f}", flush=True)
        if step % 10 == 0:
            self._event(
                {"t": now, "type": "sample", "step": step, "prompt": "p", "completion": "c"}
            )
            path = str(self.attempt_dir / f"checkpoint-{step}")
            self._event({"t": now, "type": "checkpoint", "step": step, "path": path})

    def _event(self, record: dict) -> None:
        os.write(self.events, json.dumps(record).encode() + b"\n")

    def _on_term(self, *_: object) -> None:
        self.stopped = True

    def _result(self, outcome: str, step: int, total: int) -> int:
        cause = None
        if outcome == "stopped":
            stop = self.attempt_dir / "stop.json"
            cause = json.loads(stop.read_text())["mode"] if stop.exists() else None
        document = {"outcome": outcome, "stop_cause": cause, "step": step, "total_steps": total}
        part = self.attempt_dir / "result.part"
        part.write_text(json.dumps(document | {"final_metrics": {"loss": 1.0 / step}}))
        part.replace(self.attempt_dir / "result.json")
        return 0


if __name__ == "__main__":
    sys.exit(main())
