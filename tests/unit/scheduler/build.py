"""Builders for scheduler tests: each names only what matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from services.scheduler.core.decisions import Decision, Published
from services.scheduler.core.inputs import Beat, FactArrived, Input, Place, RequestArrived, Tick
from services.scheduler.core.state import ClusterState, Job, Limits, Moment
from services.scheduler.core.step import steps
from shared.events.calls import Heartbeat, RunReport
from shared.events.requests import JobSubmitRequested
from shared.events.run import RunCheckpoint, RunExited, RunFact, RunStarted
from shared.jobs.lifecycle import Change
from shared.jobs.resources import GpuInfo, HostInventory

EPOCH = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)


def moment(seconds: float = 0.0) -> Moment:
    """A time `seconds` after the tests' own epoch."""
    return Moment(EPOCH + timedelta(seconds=seconds), 1000.0 + seconds)


def job_id(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012d}"


def a_config(**fields: Any) -> dict[str, Any]:
    return {
        "algorithm": "sft",
        "model_path": "/models/tiny",
        "train_data_path": "/data/sales.jsonl",
        **fields,
    }


def a_submit(number: int, name: str = "", **fields: Any) -> JobSubmitRequested:
    return JobSubmitRequested(
        job=job_id(number),
        req_n=1,
        at=EPOCH,
        name=name or f"job{number}",
        config=a_config(**fields),
    )


def gpus(
    count: int, name: str = "NVIDIA A100-SXM4-80GB", memory: int = 81920
) -> tuple[GpuInfo, ...]:
    return tuple(
        GpuInfo(index=i, uuid=f"GPU-{i}", name=name, memory_mib=memory) for i in range(count)
    )


def an_inventory(
    label: str, count: int = 1, device: str = "cuda", shared: Sequence[str] = (), **gpu: Any
) -> HostInventory:
    return HostInventory(
        hostname=label,
        label=label,
        device=device,
        gpus=gpus(count, **gpu),
        shared_paths=tuple(shared),
    )


def a_beat(
    host: str,
    count: int = 1,
    *,
    instance: str = "i1",
    boot_id: str = "b1",
    runs: Sequence[RunReport] = (),
    inventory: HostInventory | None = None,
    unanswered: float = 0.0,
    began: float = 0.0,
    **more: Any,
) -> Beat:
    inventory = inventory or an_inventory(f"{host}-label", count, **more)
    return Beat(
        host,
        Heartbeat(
            instance=instance,
            boot_id=boot_id,
            began=began,
            inventory=inventory,
            runs=tuple(runs),
            unanswered_seconds=unanswered,
        ),
    )


class World:
    """A cluster that a test drives input by input; it keeps every decision."""

    def __init__(self, **limits: Any) -> None:
        self.state = ClusterState(limits=replace(Limits(), **limits))
        self.seconds = 0.0
        self.decisions: list[Decision] = []
        self.seq: dict[tuple[str, int], int] = {}

    @property
    def now(self) -> Moment:
        return moment(self.seconds)

    def do(self, *inputs: Input) -> list[Decision]:
        made: list[Decision] = []
        for one in inputs:
            self.state, decided = steps(self.state, (one,), self.now)
            made += decided
        self.decisions += made
        return made

    def pass_(self, seconds: float) -> list[Decision]:
        """Let time go by and tick once at the end."""
        self.seconds += seconds
        return self.do(Tick())

    def submit(self, number: int, **fields: Any) -> Job:
        self.do(RequestArrived(a_submit(number, **fields)))
        return self.job(number)

    def request(self, number: int, kind: type[Any], **fields: Any) -> Job:
        job = self.job(number)
        one = kind(job=job.id, req_n=job.state.req_n + 1, at=EPOCH, **fields)
        self.do(RequestArrived(one))
        return self.job(number)

    def place(self) -> None:
        self.do(Place())

    def job(self, number: int) -> Job:
        return self.state.jobs[job_id(number)]

    def fact(self, number: int, fact: RunFact, host: str | None = None, attempt: int = 0) -> Job:
        job = self.job(number)
        run = job.run
        host = host or (run.host if run else job.state.host) or ""
        self.do(FactArrived(host, job.id, attempt or job.state.attempt, fact))
        return self.job(number)

    def next_seq(self, number: int) -> int:
        key = (job_id(number), self.job(number).state.attempt)
        self.seq[key] = self.seq.get(key, 0) + 1
        return self.seq[key]

    def started(self, number: int, boot_id: str = "b1") -> Job:
        fact = RunStarted(seq=self.next_seq(number), t=0, pid=7, boot_id=boot_id, warm=True)
        return self.fact(number, fact)

    def checkpoint(self, number: int, step: int, folder: str = "/ckpt", **fields: Any) -> Job:
        path = f"{folder}/{job_id(number)}/checkpoint-{step}"
        fact = RunCheckpoint(seq=self.next_seq(number), t=0, step=step, path=path, **fields)
        return self.fact(number, fact)

    def exited(self, number: int, outcome: str = "completed", **fields: Any) -> Job:
        fact = RunExited(seq=self.next_seq(number), t=0, outcome=outcome, **fields)  # type: ignore[arg-type]
        return self.fact(number, fact)

    def running(self, number: int, **fields: Any) -> Job:
        """Submit, place and start a job on whatever host is there."""
        self.submit(number, **fields)
        self.place()
        return self.started(number)

    def changes(self, number: int) -> list[Change]:
        return [
            d.change
            for d in self.decisions
            if isinstance(d, Published) and d.state.job == job_id(number)
        ]
