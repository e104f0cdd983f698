"""A stack for one group of figures, the tiny model, and the job of the guide."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.stack import Stack, until
from trainyard import Client

ROOT = Path(__file__).resolve().parent.parent


def job(model: Path, steps: int = 1) -> dict[str, Any]:
    """The guide's body with few steps."""
    return {
        "name": "bench",
        "algorithm": "sft",
        "model_path": str(model),
        "train_data_path": "datasets/sales_sft.jsonl",
        "num_gpus": 1,
        "learning_rate": 1e-4,
        "batch_size": 2,
        "num_epochs": 1,
        "max_steps": steps,
        "gradient_checkpointing": False,
    }


def make_model(folder: Path) -> Path:
    """Make the tiny model."""
    module = "services.gpu_agent.trainers.model_zoo"
    subprocess.run(
        [sys.executable, "-m", module, "tiny", "--out", str(folder)],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        timeout=120,
    )
    return folder


@contextmanager
def running(*, rewards: bool = False, **env: str) -> Iterator[tuple[Stack, Client]]:
    """Start a stack of its own with one host online, and stop it; its home is `stack.home`."""
    with tempfile.TemporaryDirectory(prefix="trainyard-bench-") as name:
        stack = Stack(Path(name), rewards=rewards, **env)
        client = stack.start()
        try:
            until(lambda: any(h.online for h in client.hosts.list()), 30, "a host is online", stack)
            yield stack, client
        finally:
            stack.stop()


def wait_warm(stack: Stack) -> None:
    """Wait until the zygote is ready: its start takes a core for seconds, and a stack is idle only then."""
    log = stack.home / "logs" / "agent.log"

    def ready() -> bool:
        lines = log.read_text(errors="replace").splitlines()
        return any("zygote" in line and "ready" in line for line in lines)

    until(ready, 60, "the zygote has imported torch", stack)


def script(name: str, *arguments: str) -> str:
    """Run one script of this folder in a process of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=900,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout.strip()
