"""Submit to first training step and to trainer process, warm, beside the same script as a fresh process."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.embedded import job, make_model, running, script
from benchmarks.row import Row, milliseconds, percentile, seconds
from trainyard import Client

GOAL_STEP_SECONDS, GOAL_PROCESS_SECONDS = 1.5, 0.2


def measure(quick: bool) -> list[Row]:
    """Submit one job after another to an idle stack whose zygote is warm."""
    count, rounds = (3, 1) if quick else (20, 3)
    with running() as (stack, client):
        model = make_model(stack.home / "tiny")
        warm = client.jobs.submit(job(model))
        client.jobs.wait(warm.uuid, 120)
        runs = [_one(client, model) for _ in range(count)]
        fresh = [_fresh(model) for _ in range(rounds)]
    steps, starts = [step for step, _ in runs], [start for _, start in runs]
    step, start, bare = percentile(steps, 0.95), percentile(starts, 0.95), percentile(fresh, 0.5)
    return [
        Row(
            "submit → first training step (warm)",
            seconds(steps),
            f"{bare:.2f} s",
            f"{percentile(steps, 0.5) / bare:.3f}",
            f"p95 ≤ {GOAL_STEP_SECONDS} s",
            step <= GOAL_STEP_SECONDS,
            "baseline: the same TRL script as a fresh process, to its end of step 1",
        ),
        Row(
            "submit → trainer process",
            milliseconds(starts),
            "—",
            "",
            f"p95 ≤ {GOAL_PROCESS_SECONDS * 1e3:.0f} ms",
            start <= GOAL_PROCESS_SECONDS,
            "two clocks of one machine; dstack publishes 10-15 s to running",
        ),
    ]


def _one(client: Client, model: Path) -> tuple[float, float]:
    began = time.time()
    made = client.jobs.submit(job(model))
    ended = client.jobs.wait(made.uuid, 120, poll=0.05)
    if ended.status != "COMPLETED" or ended.started_at is None:
        raise RuntimeError(f"the run failed: {ended.message}")
    data = client.jobs.metrics(made.uuid, ["loss"], x="time")
    return float(data.x[0] or 0) - began, ended.started_at.timestamp() - began


def _fresh(model: Path) -> float:
    began = time.perf_counter()
    script("bare_first_step.py", str(model))
    return time.perf_counter() - began
