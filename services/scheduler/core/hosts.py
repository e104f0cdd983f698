"""What users ask of hosts: drain, undrain, forget."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from services.scheduler.core.decisions import DesiredCleared
from services.scheduler.core.draft import Draft
from services.scheduler.core.endings import Ending, settle
from services.scheduler.core.requests import ask_to_stop
from services.scheduler.core.state import Host
from shared.events.requests import HostDrainRequested, HostForgetRequested, HostRequest
from shared.jobs.reasons import Reason


def arrive(draft: Draft, request: HostRequest) -> None:
    """Apply a request about a host, unless a later one was applied before: each says the whole of it."""
    host = draft.host(request.host) or Host(request.host, request.host)
    if request.req_n <= host.req_n:
        draft.count("request_repeated", host=request.host, req_n=request.req_n)
        return
    host = replace(host, req_n=request.req_n)
    match request:
        case HostDrainRequested():
            draft.put_host(replace(host, drained=request.drained))
            if request.drained and request.stop_jobs:
                _move_away(draft, host)
        case HostForgetRequested():
            _forget(draft, host)
        case _:
            assert_never(request)


def _move_away(draft: Draft, host: Host) -> None:
    """Stop what runs there with a checkpoint; it is placed again without a retry spent."""
    for job_id in sorted(host.runs):
        job = draft.job(job_id)
        if job is not None and job.run is not None and job.state.stop_requested is None:
            ask_to_stop(draft, job, "drain")


def _forget(draft: Draft, host: Host) -> None:
    """Write a host off: what ran there goes on from what can be read elsewhere."""
    draft.put_host(replace(host, forgotten=True, online=False, lost=True, stops={}))
    for job_id in sorted(host.stops):
        draft.decide(DesiredCleared(host.id, job_id))
    for job_id in sorted(host.runs):
        job = draft.job(job_id)
        if job is not None and job.run is not None:
            lost = tuple(sorted({*job.lost_hosts, host.id}))
            settle(
                draft, draft.put(replace(job, lost_hosts=lost)), Ending("lost", Reason.HOST_LOST)
            )
    draft.stir_everyone()
