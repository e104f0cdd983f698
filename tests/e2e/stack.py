"""A real embedded stack for tests: `trainyard up` with its own home and free ports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import PATIENCE
from trainyard import Client, Job

ROOT = Path(__file__).resolve().parents[2]


class Stack:
    """Starts, kills and restarts parts of one stack; ends only what it started."""

    def __init__(self, home: Path, *options: str, rewards: bool = False, **env: str) -> None:
        """`options` of `up`, such as --no-agent; `env` on top of this process's own environment.

        `rewards`: with the reward services too, which most tests have no use for.
        """
        self.home = home
        self.options = options if rewards else ("--no-reward", *options)
        self.env = os.environ | {
            "TRAINYARD_HOME": str(home),
            "TRAINYARD_CHECKPOINT_DIR": str(home / "checkpoints"),
            "TRAINYARD_API_PORT": "0",
            "TRAINYARD_NATS_PORT": "0",
            "TRAINYARD_REWARD_PORT": "0",
            "TRAINYARD_AGENT_RULES": "true" if rewards else "false",
            "OMP_NUM_THREADS": "1",
            **env,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None

    def start(self, seconds: float = 90.0) -> Client:
        with (self.home / "up.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "trainyard.cli.main", "up", *self.options],
                env=self.env,
                stdout=output,
                stderr=output,
            )
        until((self.home / "run" / "stack.json").exists, seconds, "the stack is up", self)
        url = json.loads((self.home / "run" / "stack.json").read_text())["url"]
        if (
            self._client is not None
        ):  # of an earlier start, where the stack was killed and not stopped
            self._client.close()
        self._client = Client(url, self.env.get("TRAINYARD_API_TOKEN"))
        return self._client

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    def stop(self, seconds: float = 60.0) -> int:
        """SIGTERM and return the exit status."""
        assert self.process is not None
        if self._client is not None:
            self._client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=seconds * PATIENCE)

    def pid_of(self, module: str) -> int:
        """Return the pid of the service that `up` runs as `-m module` (or the broker)."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children():
            if module in " ".join(child.cmdline()):
                return child.pid
        raise AssertionError(f"{module} does not run")

    def kill(self, module: str) -> int:
        """kill -9 one service, return its old pid; `up` starts it again."""
        pid = self.pid_of(module)
        os.kill(pid, signal.SIGKILL)
        until(lambda: _pid_or_none(self, module) not in (None, pid), 20, f"{module} is back", self)
        return pid

    def ended(self, job: str, seconds: float = 120.0) -> Job:
        """Wait until a job has ended and all that it told is stored, and return it.

        Its status and its steps come by streams of their own; the live view closes behind the last of them.
        """
        self.client.jobs.wait(job, seconds * PATIENCE)
        for _ in self.client.jobs.live(job):
            pass
        return self.client.jobs.get(job)

    @property
    def jobs_dir(self) -> Path:
        return self.home / "agents" / "local" / "jobs"

    def attempt_dir(self, job: str, attempt: int) -> Path:
        return self.jobs_dir / job / "attempts" / str(attempt)

    def steps_made(self, job: str, attempt: int) -> int:
        """Return how many steps the trainer has written down, sent or not."""
        events = self.attempt_dir(job, attempt) / "events.jsonl"
        return events.read_bytes().count(b'"type":"metric"') if events.exists() else 0

    def trainer_pid(self, job: str, attempt: int) -> int:
        pid: int = json.loads((self.attempt_dir(job, attempt) / "pid.json").read_text())["trainer"][
            "pid"
        ]
        return pid


def _pid_or_none(stack: Stack, module: str) -> int | None:
    try:
        return stack.pid_of(module)
    except (AssertionError, psutil.NoSuchProcess):
        return None


def until(check: Callable[[], Any], seconds: float, what: str, stack: Stack | None = None) -> Any:
    """Poll `check` until it is true and return its value; fail with `what` after `seconds`, more on a busy machine."""
    deadline = time.monotonic() + seconds * PATIENCE
    while time.monotonic() < deadline:
        value = check()
        if value:
            return value
        if stack is not None and stack.process is not None and stack.process.poll() is not None:
            raise AssertionError(
                f"the stack ended with {stack.process.returncode}; waiting for: {what}"
            )
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")
