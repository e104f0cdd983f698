"""What becomes of a job when its attempt is over: the one place where an ending meets what the user had asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from services.scheduler.core.decisions import DesiredCleared, DesiredSet
from services.scheduler.core.draft import Draft
from services.scheduler.core.out_of_memory import OUT_OF_MEMORY, can_shrink, shrunk
from services.scheduler.core.shortage import noted
from services.scheduler.core.state import Job
from shared.disk.levels import Shortage, holding
from shared.jobs.lifecycle import Bilingual, Change
from shared.jobs.reasons import REASONS, Reason, Retry

DONE_CAUSES = {"stop_metric": Reason.TARGET_REACHED, "early_stopping": Reason.EARLY_STOPPED}
PAUSES_ITSELF = frozenset({Reason.REWARD_UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended, whoever says so."""

    outcome: str
    """`completed`, `stopped`, `failed`, `refused` or `lost`."""
    reason: Reason | None = None
    message: Bilingual | None = None
    cause: str | None = None
    final: dict[str, Any] = field(default_factory=dict)
    """`final_seq` and `final_metrics`, where the run could say them."""
    shortage: Shortage | None = None
    """What lacked room, with the reason `disk_full`."""


def settle(draft: Draft, job: Job, ending: Ending) -> Job:
    """Close the open attempt of `job` and decide once what follows. The GPUs are free afterwards."""
    run = job.run
    if run is None:
        raise ValueError(f"{job.id}: no attempt is open")
    fenced = ending.outcome == "lost"
    status = "fenced" if fenced else "refused" if ending.outcome == "refused" else "ended"
    draft.attempt(job, status, ending.reason.value if ending.reason else None)
    if fenced:
        stop_stale(draft, run.host, job.id, run.attempt)
    else:
        draft.decide(DesiredCleared(run.host, job.id))
        _release_locks(draft, run.host, job.id)
    if ending.reason is Reason.DISK_FULL and ending.outcome in ("failed", "refused"):
        job = noted(job, run.host, ending.shortage)
        _believe(draft, run.host, ending.shortage)
    job = replace(job, run=None)
    wanted = job.state.stop_requested
    if ending.outcome == "completed" or _is_done(ending):
        return _complete(draft, job, ending, wanted)
    if wanted == "cancel":
        return _end(draft, job, Change.CANCELLED, Reason.USER, ending)
    return _go_on(draft, job, ending, wanted)


def stop_stale(draft: Draft, host_id: str, job_id: str, attempt: int) -> None:
    """Tell a host to stop an attempt that no longer counts; forgotten hosts are told nothing."""
    host = draft.host(host_id)
    if host is None or host.forgotten:
        draft.decide(DesiredCleared(host_id, job_id))
        return
    if host.stops.get(job_id) == attempt:
        return
    draft.put_host(replace(host, stops={**host.stops, job_id: attempt}), durable=False)
    draft.decide(DesiredSet(host_id, job_id, attempt, "stop", stop_mode="cancel"))


def stale_stopped(draft: Draft, host_id: str, job_id: str) -> None:
    """Forget that a host was told to stop a stale attempt: nothing of it runs there any more."""
    host = draft.host(host_id)
    if host is not None and job_id in host.stops:
        stops = {j: a for j, a in host.stops.items() if j != job_id}
        draft.put_host(replace(host, stops=stops), durable=False)
        job = draft.job(job_id)
        if job is None or job.run is None or job.run.host != host_id:
            draft.decide(DesiredCleared(host_id, job_id))


def _is_done(ending: Ending) -> bool:
    return ending.outcome == "stopped" and ending.cause in DONE_CAUSES


def _complete(draft: Draft, job: Job, ending: Ending, wanted: str | None) -> Job:
    reason = ending.reason or DONE_CAUSES.get(ending.cause or "")
    if wanted == "cancel":
        reason = Reason.CANCEL_TOO_LATE
    return _end(draft, job, Change.COMPLETED, reason, ending)


def _go_on(draft: Draft, job: Job, ending: Ending, wanted: str | None) -> Job:
    """Handle every ending that is neither complete nor cancelled."""
    reason = ending.reason or Reason.EXIT_UNKNOWN
    if ending.outcome == "stopped":
        return _stopped(draft, job, ending, wanted)
    if reason in PAUSES_ITSELF:
        return _pause(draft, job, reason, ending)
    verdict = Retry.FREE if ending.outcome == "lost" else REASONS[reason].retry
    if ending.outcome == "refused" and verdict is Retry.SPEND:
        verdict = Retry.FREE
    exhausted = job.state.retries_spent >= job.max_retries
    too_large = ending.outcome == "failed" and reason in OUT_OF_MEMORY
    if too_large and not can_shrink(job):
        return _end(draft, job, Change.FAILED, reason, ending)
    hopeless = job.setbacks + 1 >= draft.limits.setbacks_at_most
    if verdict is Retry.NEVER or (verdict is Retry.SPEND and exhausted) or hopeless:
        return _end(draft, job, Change.FAILED, reason, ending)
    if verdict is Retry.SPEND:
        job = replace(
            job, state=job.state.model_copy(update={"retries_spent": job.state.retries_spent + 1})
        )
    if too_large:
        job, said = shrunk(job, ending.message)
        ending = replace(ending, message=said)
    if wanted == "pause":
        return _pause(draft, job, Reason.USER, ending)
    if reason is Reason.DISK_FULL and ending.outcome == "failed":
        # It cannot go on before there is room; `room.tick` resumes it then.
        return _pause(draft, replace(job, setbacks=job.setbacks + 1), reason, ending)
    return _requeue(draft, job, reason, ending)


def _stopped(draft: Draft, job: Job, ending: Ending, wanted: str | None) -> Job:
    """Handle an attempt that ended because it was asked to, or by its own rule."""
    if ending.cause == "time_limit":
        return _end(draft, job, Change.FAILED, Reason.TIME_LIMIT, ending)
    if wanted == "pause":
        return _pause(draft, job, Reason.USER, ending)
    if ending.cause == "pause":
        return _pause(draft, job, ending.reason or Reason.USER, ending)
    return _requeue(draft, job, ending.reason or Reason.DRAINED, ending)


def _end(draft: Draft, job: Job, change: Change, reason: Reason | None, ending: Ending) -> Job:
    job = replace(job, resume_after_stop=False, not_before=None, avoid=())
    return draft.change(
        job,
        change,
        reason=reason,
        message=ending.message,
        waiting_for=None,
        stop_requested=None,
        finished_at=draft.now.wall,
        **ending.final,
    )


def _pause(draft: Draft, job: Job, reason: Reason, ending: Ending) -> Job:
    again = job.resume_after_stop
    job = replace(job, resume_after_stop=False)
    job = draft.change(
        job,
        Change.PAUSED,
        reason=reason,
        message=ending.message,
        waiting_for=None,
        stop_requested=None,
        host=None,
        gpus=(),
        gpu_uuids=(),
        **ending.final,
    )
    if again:
        job = draft.change(
            job, Change.RESUMED, reason=None, message=None, final_seq=None, final_metrics=None
        )
    return job


def _requeue(draft: Draft, job: Job, reason: Reason, ending: Ending) -> Job:
    """Put it back with a back-off that doubles while attempts end without a new checkpoint.

    An attempt that failed waits from the first time on; others only when nothing came of the one before either.
    """
    limits = draft.limits
    host = job.state.host
    avoid = job.avoid
    now = draft.now.wall
    if ending.outcome == "refused" and host is not None:
        doubled = 0 if reason is Reason.DISK_FULL else job.setbacks
        pause = limits.refusal_exclusion * 2 ** min(doubled, 20)
        until = now + timedelta(seconds=min(pause, limits.backoff_last))
        avoid = (*((h, t) for h, t in avoid if h != host and t > now), (host, until))
    blamed = ending.outcome == "failed" and REASONS[reason].retry is Retry.SPEND
    steps = job.setbacks + (1 if blamed else 0)
    if ending.outcome == "refused":
        steps = 0  # Another host may take it at once; this one is left alone by `avoid`.
    not_before = None
    if steps > 0:
        delay = min(limits.backoff_first * 2 ** (min(steps, 20) - 1), limits.backoff_last)
        not_before = now + timedelta(seconds=delay)
    demand = job.demand
    if reason is Reason.CUDA_OOM:
        demand = replace(demand, outgrown_mib=max(demand.outgrown_mib, _memory(draft, job)))
    job = replace(
        job,
        demand=demand,
        avoid=avoid,
        not_before=not_before,
        setbacks=job.setbacks + 1,
        resume_after_stop=False,
    )
    return draft.change(
        job,
        Change.REQUEUED,
        reason=reason,
        message=ending.message,
        waiting_for=None,
        stop_requested=None,
        host=None,
        gpus=(),
        gpu_uuids=(),
        # Readers store an attempt to its end also when they hear of the next one first.
        final_seq=ending.final.get("final_seq"),
    )


def _memory(draft: Draft, job: Job) -> int:
    host = draft.host(job.state.host or "")
    held = set(job.state.gpus)
    gpus = host.inventory.gpus if host and host.inventory else ()
    return min((g.memory_mib for g in gpus if g.index in held), default=0)


def _believe(draft: Draft, host_id: str, shortage: Shortage | None) -> None:
    """Take over what a run found on the disk: the last heartbeat may be some seconds old."""
    host = draft.host(host_id)
    if host is None or host.inventory is None or shortage is None:
        return
    found = holding(shortage.path, host.inventory.volumes)
    volumes = tuple(
        replace(v, free=min(v.free, shortage.have)) if v is found else v
        for v in host.inventory.volumes
    )
    inventory = host.inventory.model_copy(update={"volumes": volumes})
    draft.put_host(replace(host, inventory=inventory), durable=False)


def _release_locks(draft: Draft, host_id: str, job_id: str) -> None:
    """An exited run holds no lock, whatever the last heartbeat still said."""
    host = draft.host(host_id)
    if host is None or host.inventory is None:
        return
    gpus = host.inventory.gpus
    if any(g.held_by == job_id for g in gpus):
        freed = tuple(
            g.model_copy(update={"held_by": None}) if g.held_by == job_id else g for g in gpus
        )
        inventory = host.inventory.model_copy(update={"gpus": freed})
        draft.put_host(replace(host, inventory=inventory), durable=False)
