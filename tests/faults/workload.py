"""Tiny jobs, some cancelled, some paused and resumed, driven through REST by a client that never gives up."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e.stack import Stack
from trainyard import ApiError, Job
from trainyard.client import ApiUnreachable

T = TypeVar("T")
STEPS, SAVE_STEPS = 12, 4


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
        "num_epochs": 2,
        "max_steps": STEPS,
        "save_steps": SAVE_STEPS,
        "max_retries": 100,
        "gradient_checkpointing": False,
    } | changes


def insist(call: Callable[[], T], seconds: float = 90.0) -> T:
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
    _asked: set[str] = field(default_factory=set)
    _ended: set[str] = field(default_factory=set)

    def submit(self, **changes: Any) -> str:
        """Submit one job for certain; a repeated request has the same key."""
        body, key = tiny_job(self.model, **changes), str(uuid.uuid4())
        job = insist(lambda: self.stack.client.jobs.submit(body, idempotency_key=key))
        self.bodies[job.uuid] = body
        return job.uuid

    def top_up(self, jobs: int) -> None:
        """Submit until `jobs` of the acknowledged jobs have not ended."""
        for uuid_ in self._open():
            job = insist(lambda u=uuid_: self.stack.client.jobs.get(u))  # type: ignore[misc]
            if job.is_terminal:
                self._ended.add(uuid_)
        for _ in range(jobs - len(self._open())):
            self.submit()

    def _open(self) -> list[str]:
        return sorted(set(self.bodies) - self._ended)

    def disturb(self) -> None:
        """Cancel, pause or resume some job that has not ended."""
        job = self.rng.choice(self._open())
        verb = self.rng.choices(["pause", "resume", "cancel"], [3, 3, 1])[0]
        self.act(job, verb)

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

    def settle(self, seconds: float) -> dict[str, Job]:
        """Resume what is paused until every job has ended; return the jobs, ended or not, after `seconds`."""
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
