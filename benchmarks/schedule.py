"""Time of one scheduling decision: 10,000 queued jobs of many demands on 500 hosts, cold and per event.

Usage: python benchmarks/schedule.py [jobs] [hosts]. The baseline compares every job with every host.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.row import Row, percentile
from services.scheduler.core.feasible import check
from services.scheduler.core.inputs import Beat, FactArrived, Input, Place, RequestArrived
from services.scheduler.core.order import Ready
from services.scheduler.core.place import schedule
from services.scheduler.core.state import ClusterState, Moment
from services.scheduler.core.step import steps
from shared.events.calls import Heartbeat
from shared.events.requests import JobSubmitRequested
from shared.events.run import RunExited
from shared.jobs.resources import GpuInfo, HostInventory

GOAL_COLD_MS, GOAL_EVENT_MS = 100, 5
START = datetime(2026, 11, 22, tzinfo=UTC)
KINDS = (("NVIDIA A100-SXM4-80GB", 81920), ("NVIDIA H100 80GB HBM3", 81559), ("NVIDIA L40S", 46068))


def moment(seconds: float) -> Moment:
    """A time after the start, on both clocks."""
    return Moment(START + timedelta(seconds=seconds), 1000.0 + seconds)


def beat(number: int) -> Beat:
    """A host of 1 to 8 GPUs of one kind."""
    name, memory = KINDS[number % len(KINDS)]
    count = (1, 2, 4, 8)[number % 4]
    gpus = tuple(
        GpuInfo(index=i, uuid=f"GPU-{number}-{i}", name=name, memory_mib=memory)
        for i in range(count)
    )
    label = f"box{number}"
    inventory = HostInventory(hostname=label, label=label, device="cuda", gpus=gpus)
    return Beat(f"h{number:04d}", Heartbeat(instance="i", boot_id="b", inventory=inventory))


def submit(number: int) -> RequestArrived:
    """A job with one of 80 demands and 10 priorities."""
    config: dict[str, object] = {
        "algorithm": "sft",
        "model_path": "/models/tiny",
        "train_data_path": "/data/rows.jsonl",
        "num_gpus": (1, 1, 1, 2, 4, 8)[number % 6],
        "priority": number % 10,
    }
    if number % 7 == 0:
        config["gpu_type"] = ("A100", "H100", "L40S", "B200")[number % 4]
    if number % 97 == 0:
        config["host"] = f"box{number % 40}"
    job = f"00000000-0000-7000-8000-{number:012d}"
    return RequestArrived(
        JobSubmitRequested(job=job, req_n=1, at=START, name=f"job{number}", config=config)
    )


def milliseconds(work: object, times: int) -> list[float]:
    """Time a callable."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        work()  # type: ignore[operator]
        found.append((time.perf_counter() - begun) * 1000)
    return found


def baseline(state: ClusterState) -> int:
    """Compare every job with every host by the same checks, for a thousandth of the jobs; returns the scale."""
    jobs = list(state.queue.standing.values())[:: max(1, len(state.jobs) // 10)]
    for _, standing in jobs:
        if isinstance(standing, Ready):
            for host in state.hosts.values():
                check(standing.ask, host)
    return max(1, len(state.queue.standing) // max(1, len(jobs)))


@dataclass
class Figures:
    """Milliseconds of each kind of decision."""

    jobs: int
    hosts: int
    naive: float = 0.0
    """Every job compared with every host, extrapolated."""
    cold: list[float] = field(default_factory=list)
    full: list[float] = field(default_factory=list)
    after_end: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


def figures(jobs: int, hosts: int) -> Figures:
    """Build the cluster and time its decisions."""
    found = Figures(jobs, hosts)
    state = ClusterState()
    inputs: list[Input] = [beat(i) for i in range(hosts)]
    inputs += [submit(i) for i in range(jobs)]
    state, _ = steps(state, inputs, moment(0))
    found.cold = milliseconds(lambda: schedule(state, moment(1)), 5)
    compared: list[int] = []
    naive = milliseconds(lambda: compared.append(baseline(state)), 1)
    found.naive = naive[0] * compared[0]
    while schedule(state, moment(1), 1).assignments:
        state, _ = steps(state, (Place(limit=100_000, refresh=0),), moment(1))
    found.full = milliseconds(lambda: schedule(state, moment(2)), 20)
    runs = [job for job in state.jobs.values() if job.run is not None][:200]
    for number, job in enumerate(runs):
        assert job.run is not None
        fact = RunExited(seq=1, t=0, outcome="completed")
        now = moment(3 + number)
        begun = time.perf_counter()
        state, _ = steps(state, (FactArrived(job.run.host, job.id, 1, fact),), now)
        middle = time.perf_counter()
        schedule(state, now)
        decided = time.perf_counter()
        state, _ = steps(state, (Place(limit=256, refresh=0),), now)
        found.after_end.append((decided - middle) * 1000)
        found.whole.append((time.perf_counter() - begun - (decided - middle)) * 1000)
    return found


def measure(quick: bool) -> list[Row]:
    """Decide in process."""
    return rows(figures(1_000, 50) if quick else figures(10_000, 500))


def rows(found: Figures) -> list[Row]:
    """Return a row for each kind of decision."""
    named = {
        "every GPU free": (found.cold, GOAL_COLD_MS),
        "all GPUs held": (found.full, None),
        "after one job ended": (found.after_end, GOAL_EVENT_MS),
        "event + decision + assignment, as the loop does": (found.whole, GOAL_EVENT_MS),
    }
    return [
        Row(
            f"one scheduling decision, {name}",
            f"p50 {percentile(took, 0.5):.2f} ms, p95 {percentile(took, 0.95):.2f} ms (n={len(took)})",
            f"{found.naive:.0f} ms",
            f"{percentile(took, 0.5) / found.naive:.6f}",
            f"p50 ≤ {goal} ms" if goal else "",
            percentile(took, 0.5) <= goal if goal else None,
            f"{found.jobs:,} jobs, {found.hosts} hosts; baseline: every job compared with every host (extrapolated)",
        )
        for name, (took, goal) in named.items()
    ]


def main(jobs: int = 10_000, hosts: int = 500) -> None:
    """Print the figures."""
    for row in rows(figures(jobs, hosts)):
        print(f"{row.what:<70} {row.ours}; baseline {row.baseline}")


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
