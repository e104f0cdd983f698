"""Fold what hosts say about runs. Every fact may come twice, late, or from an attempt that no longer counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import assert_never

from services.scheduler.core.decisions import CheckpointSaved, DesiredCleared
from services.scheduler.core.draft import Draft
from services.scheduler.core.endings import Ending, settle, stale_stopped, stop_stale
from services.scheduler.core.inputs import FactArrived
from services.scheduler.core.readiness import resumable
from services.scheduler.core.state import Checkpoint, Job, Phase
from shared.events.run import (
    RunAccepted,
    RunCheckpoint,
    RunCollected,
    RunExited,
    RunFact,
    RunRefused,
    RunStarted,
)
from shared.jobs.lifecycle import Bilingual, Change
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus

TOMBSTONES = 64
"""Deleted checkpoints remembered, so that a repeated fact does not bring one back."""


def fold(draft: Draft, arrived: FactArrived) -> None:
    """Apply one fact, or count why it does not count."""
    job = draft.job(arrived.job)
    if job is None:
        draft.count("fact_of_unknown_job", host=arrived.host, job=arrived.job)
        _tell_to_stop(draft, arrived)
        return
    if isinstance(arrived.fact, RunCollected):
        draft.decide(DesiredCleared(arrived.host, job.id))
        return
    run = job.run
    if run is not None and (run.attempt, run.host) == (arrived.attempt, arrived.host):
        _apply(draft, job, arrived.fact)
    elif _is_late_checkpoint(job, arrived):
        assert isinstance(arrived.fact, RunCheckpoint)
        _keep_checkpoint(draft, job, arrived.host, arrived.attempt, arrived.fact)
    elif run is None and (job.state.attempt, job.state.host) == (arrived.attempt, arrived.host):
        draft.count("fact_repeated", job=job.id, attempt=arrived.attempt, kind=arrived.fact.type)
    else:
        _refuse(draft, job, arrived)


def _refuse(draft: Draft, job: Job, arrived: FactArrived) -> None:
    """Count a fact of an attempt that does not count, and have that attempt stopped."""
    run = job.run
    kind = (
        "fact_of_wrong_host" if run and run.attempt == arrived.attempt else "fact_of_stale_attempt"
    )
    draft.count(kind, host=arrived.host, job=job.id, attempt=arrived.attempt)
    if arrived.attempt > max(job.state.attempt, job.attempt_floor):
        # The host knows more than this database does (it was restored): never use that number again.
        draft.put(replace(job, attempt_floor=arrived.attempt))
    _tell_to_stop(draft, arrived)


def _tell_to_stop(draft: Draft, arrived: FactArrived) -> None:
    if isinstance(arrived.fact, RunExited | RunRefused | RunCollected):
        stale_stopped(draft, arrived.host, arrived.job)
        return
    job = draft.job(arrived.job)
    if job is not None and job.run is not None and job.run.host == arrived.host:
        # The host's one desired state is the attempt that counts; the agent ends any other for it.
        return
    if job is not None and job.state.deleted:
        return
    stop_stale(draft, arrived.host, arrived.job, arrived.attempt)


def _is_late_checkpoint(job: Job, arrived: FactArrived) -> bool:
    """Tell whether this is a checkpoint of the last attempt, sent again after that attempt was closed in order."""
    return (
        isinstance(arrived.fact, RunCheckpoint)
        and job.run is None
        and job.state.attempt == arrived.attempt
        and job.state.host == arrived.host
    )


def _apply(draft: Draft, job: Job, fact: RunFact) -> None:
    match fact:
        case RunAccepted():
            _accepted(draft, job)
        case RunRefused():
            message = _message(fact.message_en, fact.message_zh)
            settle(draft, job, Ending("refused", fact.reason, message, shortage=fact.shortage))
        case RunStarted():
            _started(draft, job, fact)
        case RunCheckpoint():
            run = job.run
            assert run is not None
            _keep_checkpoint(draft, job, run.host, run.attempt, fact)
        case RunExited():
            settle(draft, job, _ending(fact))
        case RunCollected():
            draft.count("fact_repeated", job=job.id)
        case _:
            assert_never(fact)


def _accepted(draft: Draft, job: Job) -> None:
    if job.run is not None and job.run.phase is Phase.ASSIGNED:
        job = replace(job, run=replace(job.run, phase=Phase.ACCEPTED))
        draft.attempt(draft.put(job), "accepted")


def _started(draft: Draft, job: Job, fact: RunStarted) -> None:
    run = job.run
    assert run is not None
    job = replace(job, run=replace(run, phase=Phase.STARTED, boot_id=fact.boot_id))
    if job.state.status is not JobStatus.PENDING:
        draft.put(job)
        return
    kept = job.state.reason if job.state.reason in (Reason.STOPPING, Reason.DISCONNECTED) else None
    job = draft.change(
        job,
        Change.RUNNING,
        reason=kept,
        message=None,
        waiting_for=None,
        started_at=job.state.started_at or draft.now.wall,
    )
    draft.attempt(job, "started")


def _keep_checkpoint(
    draft: Draft, job: Job, host_id: str, attempt: int, fact: RunCheckpoint
) -> None:
    """Keep what the fact says about one step, and tell of it."""
    merged = merge_checkpoint(draft, job, host_id, attempt, fact)
    if merged is None:
        draft.count("fact_repeated", job=job.id, attempt=attempt, kind=fact.type)
        return
    newest = resumable(merged)
    last_step = newest[0].step if newest else (0 if _has_step_zero(merged) else None)
    if fact.deleted and last_step == merged.state.last_step:
        return
    change = Change.UPDATED if merged.is_ended else Change.CHECKPOINTED
    folder = str(PurePosixPath(fact.path).parent)
    draft.change(merged, change, last_step=last_step, checkpoint_dir=folder)


def merge_checkpoint(
    draft: Draft, job: Job, host_id: str, attempt: int, fact: RunCheckpoint
) -> Job | None:
    """Store what the fact says about one step; None where a newer fact about that step came before."""
    same = [c for c in job.checkpoints if c.step == fact.step and _is_same(c, host_id, fact)]
    if any((c.attempt, c.seq) >= (attempt, fact.seq) for c in same):
        return None
    checkpoint = _checkpoint(draft, host_id, attempt, fact)
    others = [c for c in job.checkpoints if c not in same]
    draft.decide(CheckpointSaved(job.id, checkpoint))
    for replaced in same:
        if replaced.host != host_id and not replaced.deleted:
            draft.decide(CheckpointSaved(job.id, replace(replaced, deleted=True, best=False)))
    kept = [_outshone(c, checkpoint) for c in others]
    for before, after in zip(others, kept, strict=True):
        if before != after:
            draft.decide(CheckpointSaved(job.id, after))
    gone = [c for c in kept if c.deleted][:-TOMBSTONES]
    job = replace(job, checkpoints=(*(c for c in kept if c not in gone), checkpoint))
    if not fact.deleted and fact.step > (job.state.last_step or 0):
        job = replace(job, setbacks=0)
    return draft.put(job)


def _is_same(known: Checkpoint, host_id: str, fact: RunCheckpoint) -> bool:
    """Tell whether both mean one folder: of one host, or of one path on a folder that hosts share."""
    return known.host == host_id or (known.shared_root is not None and known.path == fact.path)


def _outshone(old: Checkpoint, new: Checkpoint) -> Checkpoint:
    """Return an older checkpoint without the marks that a newer one took over."""
    return replace(old, best=old.best and not new.best, last=old.last and not new.last)


def _has_step_zero(job: Job) -> bool:
    return any(c.step == 0 and not c.deleted for c in job.checkpoints)


def _checkpoint(draft: Draft, host_id: str, attempt: int, fact: RunCheckpoint) -> Checkpoint:
    host = draft.host(host_id)
    shared = host.inventory.shared_paths if host and host.inventory else ()
    below = [root for root in shared if fact.path.startswith(root.rstrip("/") + "/")]
    return Checkpoint(
        step=fact.step,
        path=fact.path,
        host=host_id,
        attempt=attempt,
        seq=fact.seq,
        kind=fact.kind,
        best=fact.best,
        last=fact.last,
        deleted=fact.deleted,
        shared_root=max(below, key=len, default=None),
        manifest_hash=fact.manifest_hash,
        size_bytes=fact.size_bytes,
        metrics=tuple(sorted(fact.metrics.items())),
    )


def _ending(fact: RunExited) -> Ending:
    return Ending(
        fact.outcome,
        fact.reason,
        _message(fact.message_en, fact.message_zh),
        fact.stop_cause,
        {"final_seq": dict(fact.last_seq), "final_metrics": dict(fact.final_metrics)},
        fact.shortage,
    )


def _message(en: str, zh: str) -> Bilingual | None:
    return Bilingual(en=en or zh, zh=zh or en) if en or zh else None
