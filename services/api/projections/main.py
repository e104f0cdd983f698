"""Streams JOBS, RUNS and REWARD applied to the main database: job, attempt, checkpoint, host and usage rows.

Applying is idempotent by the messages' own numbers (`job_n`, `host_n`, a fact's `seq`), so a stream may be read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, update
from sqlmodel import Session, col

from services.api.db.tables import AttemptRow, CheckpointRow, HostRow
from services.api.projections.jobs import apply_jobs
from services.api.projections.rewards import apply_rewards
from services.api.projections.verdicts import Verdict, verdict
from shared.bus.port import BusMessage
from shared.events import Envelope, Event, UnknownEvent
from shared.events.job import HostUpdated, JobEventBase
from shared.events.reward import RewardFact
from shared.events.run import (
    RunCheckpoint,
    RunExited,
    RunFactBase,
    RunRefused,
    RunStarted,
)
from shared.events.subjects import RunSubject

Item = tuple[BusMessage, Envelope, Event | UnknownEvent]


def apply_main(session: Session, stream: str, messages: Sequence[Item]) -> None:
    """Apply messages of JOBS, RUNS or REWARD in order; what is old, unknown or not for us changes nothing."""
    if stream == "JOBS":
        events = [event for _, _, event in messages]
        apply_jobs(session, [event for event in events if isinstance(event, JobEventBase)])
        apply_hosts(session, [event for event in events if isinstance(event, HostUpdated)])
    elif stream == "RUNS":
        for message, _, event in messages:
            if isinstance(event, RunFactBase):
                apply_fact(session, RunSubject.parse(message.subject), event)
    elif stream == "REWARD":
        apply_rewards(session, [e for _, _, e in messages if isinstance(e, RewardFact)])


def apply_hosts(session: Session, events: Sequence[HostUpdated]) -> None:
    """Copy what the scheduler knows of hosts where it is newer."""
    named = {event.host for event in events}
    if not named:
        return
    found = session.execute(select(HostRow).where(col(HostRow.id).in_(named))).scalars()
    rows = {row.id: row for row in found}
    for event in events:
        row = rows.get(event.host)
        if row is None:
            row = rows[event.host] = HostRow(id=event.host, label=event.label)
            session.add(row)
        if event.host_n <= row.host_n:
            continue
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
