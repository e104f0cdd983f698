"""`step`: the whole scheduler as one pure function, for the service's loop and for simulations alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from services.scheduler.core import facts, hosts, leases, requests, room
from services.scheduler.core.assign import place
from services.scheduler.core.decisions import Decision
from services.scheduler.core.draft import Draft
from services.scheduler.core.inputs import (
    Beat,
    FactArrived,
    HostRequestArrived,
    Input,
    Place,
    RequestArrived,
    Tick,
)
from services.scheduler.core.state import ClusterState, Job, Moment


def step(state: ClusterState, one: Input, now: Moment) -> tuple[ClusterState, tuple[Decision, ...]]:
    """Return the next state and what was decided. Never raises for anything that can come from outside."""
    return steps(state, (one,), now)


def steps(
    state: ClusterState, inputs: Iterable[Input], now: Moment
) -> tuple[ClusterState, tuple[Decision, ...]]:
    """Return the state after several inputs that are committed together; `Place` must come alone."""
    draft = Draft(state, now)
    for one in inputs:
        _apply(draft, one)
    return draft.finish()


def adopt(state: ClusterState, jobs: Iterable[Job], now: Moment) -> ClusterState:
    """Return the state with stored jobs taken into memory; nothing is decided about them."""
    draft = Draft(state, now, passive=True)
    for job in jobs:
        if job.id not in state.jobs:
            draft.put(job, durable=False)
    return draft.finish()[0]


def evict(state: ClusterState, now: Moment, after_seconds: float = 600.0) -> ClusterState:
    """Return the state without jobs that ended a while ago and that no unfinished job refers to."""
    needed = {dep for job in state.jobs.values() if not job.is_ended for dep in references(job)}
    gone = {
        job.id
        for job in state.jobs.values()
        if job.is_ended
        and job.id not in needed
        and job.state.finished_at is not None
        and (now.wall - job.state.finished_at).total_seconds() > after_seconds
    }
    if not gone:
        return state
    kept = {job_id: job for job_id, job in state.jobs.items() if job_id not in gone}
    return ClusterState(
        jobs=kept,
        hosts=state.hosts,
        queue=state.queue,
        dependents={k: v for k, v in state.dependents.items() if v},
        reservations=state.reservations,
        untold=state.untold,
        held=state.held,
        next_order=state.next_order,
        limits=state.limits,
    )


def references(job: Job) -> frozenset[str]:
    """Return the jobs that a decision about this one may look at."""
    return frozenset((*job.depends_on, *job.after, *(ref.job for ref in job.models)))


def _apply(draft: Draft, one: Input) -> None:
    match one:
        case RequestArrived():
            requests.arrive(draft, one.request)
        case HostRequestArrived():
            hosts.arrive(draft, one.request)
        case FactArrived():
            facts.fold(draft, one)
        case Beat():
            leases.beat(draft, one)
        case Tick():
            leases.tick(draft)
            room.tick(draft)
        case Place():
            place(draft, one)
        case _:
            assert_never(one)
