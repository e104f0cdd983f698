"""Telemetry end to end on one core: trainers' lines → spool → relay → JetStream → projector → SQL, beside raw JetStream.

Agent, broker, api and scheduler share one core; the trainers and this process have the others. The trainers write
faster than that, so the files fill up and the rate is what the platform takes.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass

import psutil

from benchmarks.paced import Paced, paced
from benchmarks.raw_jetstream import points_per_second
from benchmarks.row import Row

GOAL = 20_000
JOBS, VALUES, BURST = 4, 6, 100
WARM_UP_SECONDS = 5.0
LINES_PER_SECOND = 5000
"""Of each job: 120,000 points a second in all."""


@dataclass(frozen=True)
class Rate:
    """What was committed in how many seconds, and the seconds of processor time it took, by process."""

    points: int
    seconds: float
    processor: dict[str, float]


def measure(quick: bool) -> list[Row]:
    """Let four jobs write for a while and count what SQL holds before and after."""
    seconds = 3.0 if quick else 25.0
    with paced(JOBS) as stack:
        found = _ingest(stack, seconds)
    core = min(os.sched_getaffinity(0))
    raw = asyncio.run(points_per_second(100_000 if quick else 3_000_000, VALUES, core))
    rate = found.points / found.seconds
    spent = ", ".join(f"{n} {s / found.seconds:.0%}" for n, s in sorted(found.processor.items()))
    return [
        Row(
            "telemetry end to end, points a second on one core",
            f"{rate:,.0f}/s",
            f"{raw:,.0f}/s",
            f"{rate / raw:.3f}",
            f"≥ {GOAL:,}/s",
            rate >= GOAL,
            f"{JOBS} trainers write lines of {VALUES} values faster than they are taken; counted over REST (`raw_count`) for "
            f"{found.seconds:.0f} s; agent, broker, api and scheduler are held on one core (of it: {spent}); baseline: the same "
            "messages of 256 lines published to a bare nats-server on one core and consumed by nats-py, read by nobody",
        )
    ]


def _ingest(stack: Paced, seconds: float) -> Rate:
    processes = stack.processes()
    cores = sorted(os.sched_getaffinity(0))
    for process in processes.values():
        _pin(process, cores[:1])
    os.sched_setaffinity(0, cores[1:] or cores)
    try:
        lines = int(LINES_PER_SECOND * (seconds + WARM_UP_SECONDS + 30))
        plan = {"lines": lines, "per_second": LINES_PER_SECOND, "burst": BURST, "values": VALUES}
        jobs = [stack.submit(**plan) for _ in range(JOBS)]
        stack.wait_started(*jobs)
        for process in stack.trainers(*jobs):
            _pin(process, cores[1:] or cores)
        time.sleep(WARM_UP_SECONDS)
        before, began = _counts(stack, jobs), time.monotonic()
        used = {name: _used(process) for name, process in processes.items()}
        time.sleep(seconds)
        after, took = _counts(stack, jobs), time.monotonic() - began
        used = {name: _used(process) - used[name] for name, process in processes.items()}
    finally:
        os.sched_setaffinity(0, cores)
    if min(b - a for a, b in zip(before, after, strict=True)) <= 0:
        raise RuntimeError("a job's telemetry stood still")
    return Rate(sum(after) - sum(before), took, used)


def _counts(stack: Paced, jobs: list[str]) -> list[int]:
    """Return how many points of each job REST knows: lines of one series, times the values of a line."""
    return [VALUES * stack.client.jobs.metrics(job, ["loss"], points=2).raw_count for job in jobs]


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _pin(process: psutil.Process, cores: list[int]) -> None:
    """Hold all threads of a process on these cores."""
    for thread in process.threads():
        os.sched_setaffinity(thread.id, cores)
    process.cpu_affinity(cores)
