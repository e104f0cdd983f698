"""Streams JOBS and RUNS applied to the main database: job, attempt, checkpoint and host rows.

Applying is idempotent by the messages' own numbers (`job_n`, `host_n`, a fact's `seq`), so a stream may be read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import update
from sqlmodel import Session, col

from services.api.db.tables import AttemptRow, CheckpointRow, HostRow, JobEventRow, JobRow
from services.api.jobs.forget import drop_history
from services.api.projections.verdicts import Verdict, verdict
from shared.bus.port import BusMessage
from shared.events import Envelope, Event, UnknownEvent
from shared.events.job import HostUpdated, JobEventBase
from shared.events.run import (
    RunCheckpoint,
    RunExited,
    RunFactBase,
    RunRefused,
    RunStarted,
)
from shared.events.subjects import RunSubject
from shared.jobs.lifecycle import Change, JobState

Item = tuple[BusMessage, Envelope, Event | UnknownEvent]

_ENDS = frozenset(
    {Change.REQUEUED, Change.PAUSED, Change.COMPLETED, Change.FAILED, Change.CANCELLED}
)


def apply_main(session: Session, stream: str, messages: Sequence[Item]) -> None:
    """Apply messages of JOBS or RUNS in order; what is old, unknown or not for us changes nothing."""
    for message, _, event in messages:
        if stream == "JOBS":
            if isinstance(event, JobEventBase):
                apply_job(session, event)
            elif isinstance(event, HostUpdated):
                apply_host(session, event)
        elif stream == "RUNS" and isinstance(event, RunFactBase):
            apply_fact(session, RunSubject.parse(message.subject), event)


def apply_job(session: Session, event: JobEventBase) -> None:
    """Copy the scheduler's state into the job's row when it is newer."""
    state = event.state
    row = session.get(JobRow, state.job)
    if row is None:
        row = _found_job(state, event.at)
        session.add(row)
    document = state.model_dump(mode="json")
    if session.get(JobEventRow, (state.job, state.job_n)) is None and not state.deleted:
        session.add(
            JobEventRow(
                job=state.job,
                job_n=state.job_n,
                change=event.change.value,
                at=event.at,
                state=document,
            )
        )
    if state.job_n > row.job_n:
        row.job_n = state.job_n
        row.answered_n = max(row.answered_n, state.req_n)
        row.status = state.status.value
        row.reason = state.reason.value if state.reason else None
        row.attempt = state.attempt
        row.host = state.host
        row.priority = state.priority
        row.started_at = state.started_at
        row.finished_at = state.finished_at
        row.state = document
        if state.deleted:
            row.deleted_at = row.deleted_at or event.at
    _note_attempt(session, event)
    session.flush()
    if state.deleted:
        drop_history(session, state.job)


def apply_host(session: Session, event: HostUpdated) -> None:
    """Copy what the scheduler knows of a host when it is newer."""
    row = session.get(HostRow, event.host)
    if row is None:
        row = HostRow(id=event.host, label=event.label)
        session.add(row)
    if event.host_n <= row.host_n:
        return
    row.host_n = event.host_n
    row.label = event.label
    row.online = event.online
    row.drained = event.drained
    row.forgotten = event.forgotten
    row.last_seen = event.last_seen
    row.runs = list(event.runs)
    if event.inventory is not None:
        row.inventory = event.inventory.model_dump(mode="json")
    session.flush()


def apply_fact(session: Session, subject: RunSubject, fact: RunFactBase) -> Verdict:
    """Store one fact of a host about an attempt, once and in order.

    A fact of a fenced or unknown attempt, a repeated one, and one beyond a gap are not stored; the agent resends
    what lies behind the last number confirmed.
    """
    found = verdict(session, subject)
    if found is not Verdict.STORE:
        return found
    row = session.get_one(AttemptRow, (subject.job, subject.attempt))
    if fact.seq <= row.last_run_seq:
        return Verdict.REPEATED
    if fact.seq > row.last_run_seq + 1:
        return Verdict.GAP
    row.last_run_seq = fact.seq
    at = datetime.fromtimestamp(fact.t, UTC)
    if isinstance(fact, RunStarted):
        row.started_at = at
    elif isinstance(fact, RunRefused):
        row.exited_at, row.outcome = at, "refused"
        row.reason, row.exit = fact.reason.value, fact.model_dump(mode="json")
    elif isinstance(fact, RunExited):
        row.exited_at, row.outcome = at, fact.outcome
        row.reason = fact.reason.value if fact.reason else None
        row.exit = fact.model_dump(mode="json")
        row.final_seq = {**fact.last_seq, "run": fact.seq}
    elif isinstance(fact, RunCheckpoint):
        _note_checkpoint(session, subject, fact, at)
    session.flush()
    return Verdict.STORE


def _found_job(state: JobState, at: datetime) -> JobRow:
    """Return a row for a job that only the scheduler knows: this database was lost or rolled back."""
    return JobRow(
        uuid=state.job,
        name=state.job,
        algorithm="",
        config={},
        created_at=state.submitted_at or at,
        req_n=state.req_n,
    )


def _note_attempt(session: Session, event: JobEventBase) -> None:
    """Remember to whom an attempt was given, and how far its facts go once it has ended."""
    state = event.state
    if state.attempt < 1:
        return
    row = session.get(AttemptRow, (state.job, state.attempt))
    if row is None and state.host:
        row = AttemptRow(
            job=state.job, attempt=state.attempt, host=state.host, assigned_at=event.at
        )
        session.add(row)
    if row is not None and event.change in _ENDS and state.final_seq is not None:
        row.final_seq = row.final_seq or dict(state.final_seq)


def _is_same_folder(session: Session, row: CheckpointRow, host: str, path: str) -> bool:
    """Tell whether a host speaks of the listed folder: hosts may have folders of one name, or share one."""
    if row.host == host:
        return True
    known = session.get(HostRow, host)
    shared = (known.inventory or {}).get("shared_paths", ()) if known is not None else ()
    return row.path == path and any(path.startswith(f"{root.rstrip('/')}/") for root in shared)


def _note_checkpoint(
    session: Session, subject: RunSubject, fact: RunCheckpoint, at: datetime
) -> None:
    row = session.get(CheckpointRow, (subject.job, fact.step))
    if row is not None and row.attempt > subject.attempt:
        return
    if fact.deleted:
        if row is not None and _is_same_folder(session, row, subject.host, fact.path):
            row.deleted, row.best = True, False
        return
    values: dict[str, Any] = {
        "attempt": subject.attempt,
        "host": subject.host,
        "kind": fact.kind,
        "path": fact.path,
        "size_bytes": fact.size_bytes,
        "manifest_hash": fact.manifest_hash,
        "metrics": dict(fact.metrics),
        "best": fact.best,
        "created_at": at,
        "deleted": False,
    }
    if row is None:
        session.add(CheckpointRow(job=subject.job, step=fact.step, **values))
    else:
        for name, value in values.items():
            setattr(row, name, value)
    session.flush()
    if fact.best:
        others = update(CheckpointRow).where(
            col(CheckpointRow.job) == subject.job, col(CheckpointRow.step) != fact.step
        )
        session.execute(others.values(best=False))
