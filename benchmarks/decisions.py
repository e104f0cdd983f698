"""One event through the scheduler's desk with its SQL transaction: a heartbeat, a job submitted, a job finished."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.agents import host_name, inventory
from benchmarks.population import body
from services.scheduler import leader
from services.scheduler.core.inputs import Beat, FactArrived, Input, Place, RequestArrived
from services.scheduler.core.state import Limits
from services.scheduler.desk import ASSIGN_AT_ONCE, Desk
from services.scheduler.loop import no_crash
from services.scheduler.main import open_database
from services.scheduler.store import Position
from shared.clock import SystemClock
from shared.events.calls import Heartbeat, RunReport
from shared.events.requests import JobSubmitRequested
from shared.events.run import RunExited
from shared.ids import new_job_id
from shared.jobs.status import JobStatus
from shared.settings import Settings

Times = dict[str, list[float]]
"""Event → seconds of each."""


def measure_events(home: Path, count: int) -> Times:
    """Open the scheduler's database of a home whose scheduler does not run, and give its desk `count` of each event."""
    return asyncio.run(_events(home, count))


async def _events(home: Path, count: int) -> Times:
    database = open_database(Settings(home=home))
    try:
        clock = SystemClock()
        holder = leader.this_process()
        lead = await database.write(lambda s: leader.acquire(s, holder, leader.unix(), True))
        if lead is None:
            raise RuntimeError("the scheduler of this home still leads")
        desk = await Desk.open(database, clock, lead, Limits(), no_crash)
        await desk.commit([Place(ASSIGN_AT_ONCE, 64)])
        found: Times = {"heartbeat": [], "job submitted": [], "job finished": []}
        running = [job for job in desk.state.jobs.values() if job.run is not None]
        for number in range(count):
            beat = await _one(desk, [_beat(desk, number)], None)
            found["heartbeat"].append(beat)
            at = Position("REQUESTS", "bench", number + 1)
            found["job submitted"].append(await _one(desk, [_submit(number)], at))
            job = running[number % len(running)]
            assert job.run is not None
            fact = RunExited(seq=9, t=time.time(), outcome="completed")
            end = FactArrived(job.run.host, job.id, job.run.attempt, fact)
            at = Position("RUNS", "bench", number + 1)
            found["job finished"].append(await _one(desk, [end], at))
            if desk.state.jobs[job.id].state.status is not JobStatus.COMPLETED:
                raise RuntimeError(f"{job.id} did not end")
        return found
    finally:
        await asyncio.to_thread(database.close)


async def _one(desk: Desk, inputs: Sequence[Input], position: Position | None) -> float:
    """Apply and store as the loop does, with what is decided about who goes where."""
    began = time.perf_counter()
    await desk.commit(inputs, position)
    return time.perf_counter() - began


def _beat(desk: Desk, number: int) -> Beat:
    host = desk.state.hosts[host_name(number % len(desk.state.hosts))]
    reports = tuple(
        RunReport(job=job, attempt=run.attempt, alive=True)
        for job in host.runs
        if (run := desk.state.jobs[job].run) is not None
    )
    held = reports[0].job if reports else None
    heartbeat = Heartbeat(
        instance=host.instance,
        boot_id=host.boot_id,
        inventory=inventory(host.id, number % 100, held),
        runs=reports,
    )
    return Beat(host.id, heartbeat)


def _submit(number: int) -> RequestArrived:
    fields = body(number)
    name = str(fields.pop("name"))
    request = JobSubmitRequested(
        job=new_job_id(), req_n=1, at=datetime.now(UTC), name=name, config=fields
    )
    return RequestArrived(request)
