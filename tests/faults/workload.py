"""Tiny jobs, some cancelled, some paused and resumed, driven through REST by a client that never gives up."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.conftest import PATIENCE
from tests.e2e.stack import Stack
from tests.faults.checker import ENDLESS
from trainyard import ApiError, Job
from trainyard.client import ApiUnreachable

T = TypeVar("T")
STEPS, SAVE_STEPS = 12, 4
LONG_STEPS = 24
LONG_SHARE = 0.3
ENDLESS_SECONDS = 6.0
"""A job without end is cancelled at some moment within this time."""


def tiny_job(model: Path, **changes: Any) -> dict[str, Any]:
    """Return the guide's body with few steps."""
    return {
        "name": "tiny",
        "algorithm": "sft",
        "model_path": str(model),
        "train_data_path": "datasets/sales_sft.jsonl",
        "num_gpus": 1,
        "learning_rate": 1e-3,
        "batch_size": 2,
        "num_epochs": 9,
        "max_steps": STEPS,
        "save_steps": SAVE_STEPS,
        "max_retries": 100,
        "gradient_checkpointing": False,
    } | changes


def insist(call: Callable[[], T], seconds: float = 90.0 * PATIENCE) -> T:
    """Call until there is an answer below 500. Raises ApiError for 4xx, TimeoutError in the end."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except ApiUnreachable as error:
            failure: Exception = error
        except ApiError as error:
            if error.status != 503:
                raise
            failure = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer within {seconds:g} s: {failure}") from failure
        time.sleep(0.1)


@dataclass
class Workload:
    """`submit` and `disturb` while faults happen, then `settle`."""

    stack: Stack
    model: Path
    rng: random.Random
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was acknowledged, by uuid."""
    cancels: set[str] = field(default_factory=set)
    """Jobs whose cancel was accepted, or was asked for and then came true."""
    cancelled_at: dict[str, float] = field(default_factory=dict)
    """Unix time at which a cancel was accepted."""
    left_alone: set[str] = field(default_factory=set)
    """Jobs that `disturb` does not choose."""
    _endless: dict[str, float] = field(default_factory=dict)
    """Jobs without end that nobody has cancelled yet, and when that is due (monotonic)."""
    _asked: set[str] = field(default_factory=set)
    _ended: set[str] = field(default_factory=set)

    def submit(self, **changes: Any) -> str:
        """Submit one job for certain; a repeated request has the same key."""
        body, key = tiny_job(self.model, **changes), str(uuid.uuid4())
        job = insist(lambda: self.stack.client.jobs.submit(body, idempotency_key=key))
        self.bodies[job.uuid] = body
        return job.uuid

    def submit_some(self) -> str:
        """Submit a short job, or sometimes a longer one."""
        steps = LONG_STEPS if self.rng.random() < LONG_SHARE else STEPS
        return self.submit(max_steps=steps)

    def top_up(self, jobs: int) -> None:
        """Submit until `jobs` of the acknowledged jobs have not ended."""
        for _ in range(jobs - len(self.open_jobs())):
            self.submit_some()

    def open_jobs(self) -> list[str]:
        """Ask, and return the jobs that have not ended."""
        for uuid_ in self._open():
            job = insist(lambda u=uuid_: self.stack.client.jobs.get(u))  # type: ignore[misc]
            if job.is_terminal:
                self._ended.add(uuid_)
        return self._open()

    def _open(self) -> list[str]:
        return sorted(set(self.bodies) - self._ended)

    def disturb(self) -> None:
        """Cancel, pause or resume some job that has not ended; see to the job without end."""
        self.cancel_endless(time.monotonic())
        if not self._endless and self.rng.random() < 0.3:
            due = time.monotonic() + self.rng.uniform(0, ENDLESS_SECONDS)
            job = self.submit(max_steps=ENDLESS, save_steps=10, priority=90)
            self._endless[job] = due
        chosen = [job for job in self._open() if job not in self.left_alone]
        if not chosen:
            return
        job = self.rng.choice(chosen)
        verb = self.rng.choices(["pause", "resume", "cancel"], [3, 3, 1])[0]
        self.act(job, verb)

    def cancel_endless(self, now: float) -> None:
        """Cancel the jobs without end for which it is time."""
        for job in [j for j, due in self._endless.items() if due <= now]:
            self.act(job, "cancel")
            del self._endless[job]

    def act(self, job: str, verb: str) -> None:
        """Ask for a verb for certain; that its status forbids it is an answer too."""
        if verb == "cancel":
            self._asked.add(job)
        try:
            insist(lambda: self.stack.client.jobs.act(job, verb))
        except ApiError as error:
            if error.status != 409:
                raise
        else:
            if verb == "cancel":
                self.cancels.add(job)
                self.cancelled_at.setdefault(job, time.time())

    def settle(self, seconds: float) -> dict[str, Job]:
        """Resume what is paused until every job has ended; return the jobs, ended or not, after `seconds`."""
        self.cancel_endless(float("inf"))
        deadline = time.monotonic() + seconds
        ended: dict[str, Job] = {}
        while time.monotonic() < deadline and len(ended) < len(self.bodies):
            for uuid_ in self.bodies:
                if uuid_ in ended:
                    continue
                job = insist(lambda u=uuid_: self.stack.client.jobs.get(u))  # type: ignore[misc]
                if job.is_terminal:
                    ended[uuid_] = job
                elif job.status == "PAUSED":
                    self.act(uuid_, "resume")
            time.sleep(0.2)
        found = {u: insist(lambda u=u: self.stack.client.jobs.get(u)) for u in self.bodies}  # type: ignore[misc]
        self.cancels |= {u for u in self._asked if found[u].status == "CANCELLED"}
        return found
