"""Everything that can happen to the scheduler, as data: one of these goes into each `step`."""

from __future__ import annotations

from dataclasses import dataclass

from shared.events.calls import Heartbeat
from shared.events.requests import HostRequest, JobRequest, JobSubmitRequested
from shared.events.run import RunFact


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A user's request about a job."""

    request: JobRequest


@dataclass(frozen=True, slots=True)
class HostRequestArrived:
    """A user's request about a host."""

    request: HostRequest


@dataclass(frozen=True, slots=True)
class FactArrived:
    """A fact of a run; host, job and attempt come from the subject it was published on."""

    host: str
    job: str
    attempt: int
    fact: RunFact


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat of an agent."""

    host: str
    heartbeat: Heartbeat


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by."""


@dataclass(frozen=True, slots=True)
class Place:
    """Give free GPUs to waiting jobs: at most `limit` at once; renew at most `refresh` waiting reasons."""

    limit: int = 256
    refresh: int = 64


Input = RequestArrived | HostRequestArrived | FactArrived | Beat | Tick | Place


def names(one: Input) -> tuple[str, ...]:
    """Return the jobs that must be in memory before `step` sees this input."""
    if isinstance(one, RequestArrived):
        return (one.request.job,)
    if isinstance(one, FactArrived):
        return (one.job,)
    if isinstance(one, Beat):
        return tuple(report.job for report in one.heartbeat.runs)
    return ()


def mentioned(one: Input) -> tuple[str, ...]:
    """Return the jobs that a new job's configuration names, read leniently: only to have them in memory."""
    if not isinstance(one, RequestArrived) or not isinstance(one.request, JobSubmitRequested):
        return ()
    config = one.request.config
    found = config.get("depends_on")
    jobs = [j for j in found if isinstance(j, str)] if isinstance(found, list | tuple) else []
    texts = (value for value in config.values() if isinstance(value, str))
    jobs += [t[4:].partition("@")[0].lower() for t in texts if t.startswith("job:")]
    return tuple(jobs)
