"""Submit to first training step and to trainer process, warm, beside the same script as a fresh process."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.embedded import job, make_model, running, script, wait_warm
from benchmarks.row import Row, milliseconds, percentile, seconds
from tests.e2e.stack import Stack
from trainyard import Client

GOAL_STEP_SECONDS, GOAL_PROCESS_SECONDS = 1.5, 0.2


def measure(quick: bool) -> list[Row]:
    """Submit one job after another to an idle stack whose zygote is warm."""
    count, rounds = (3, 1) if quick else (20, 3)
    with running() as (stack, client):
        model = make_model(stack.home / "tiny")
        wait_warm(stack)
        first = client.jobs.submit(job(model))
        client.jobs.wait(first.uuid, 120)
        runs = [start(stack, client, job(model)) for _ in range(count)]
        fresh = [_fresh(model) for _ in range(rounds)]
    steps, starts = [run.first_step for run in runs], [run.process for run in runs]
    stages = ", ".join(
        f"{name} {percentile([getattr(run, name) for run in runs], 0.5) * 1e3:.0f}"
        for name in Start.__dataclass_fields__
    )
    step, process, bare = percentile(steps, 0.95), percentile(starts, 0.95), percentile(fresh, 0.5)
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
            process <= GOAL_PROCESS_SECONDS,
            "from before `POST /api/v1/jobs/` to the agent's fact that the trainer process exists, one after another on an idle stack; "
            f"medians on the way in ms: {stages}; dstack publishes 10-15 s from submit to running",
        ),
    ]


@dataclass(frozen=True)
class Start:
    """Seconds from before the POST to each moment of one start, by the one wall clock of this machine."""

    answered: float
    queued: float
    assigned: float
    taken: float
    checked: float
    process: float
    running: float
    first_step: float


def start(stack: Stack, client: Client, body: dict[str, Any]) -> Start:
    """Run one job and collect when each part was done, from what each wrote."""
    began = time.time()
    made = client.jobs.submit(body)
    answered = time.time()
    ended = client.jobs.wait(made.uuid, 120, poll=0.05)
    if ended.status != "COMPLETED":
        raise RuntimeError(f"the run failed: {ended.message}")
    events = client.call("GET", f"/api/v1/jobs/{made.uuid}/events")
    at = {e["type"]: datetime.fromisoformat(e["time"]).timestamp() for e in events}
    attempt = stack.attempt_dir(made.uuid, 1)
    facts = [json.loads(line) for line in (attempt / "facts.jsonl").read_text().splitlines()]
    told = {fact["type"]: fact["t"] for fact in facts}
    data = client.jobs.metrics(made.uuid, ["loss"], x="time")
    moments = (
        answered,
        at["job.queued"],
        at["job.assigned"],
        (attempt / "entry.json").stat().st_mtime,
        told["run.accepted.v1"],
        told["run.started.v1"],
        at["job.running"],
        float(data.x[0] or 0),
    )
    return Start(*(moment - began for moment in moments))


def _fresh(model: Path) -> float:
    began = time.perf_counter()
    script("bare_first_step.py", str(model))
    return time.perf_counter() - began
