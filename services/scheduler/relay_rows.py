"""What the relay reads and marks: unpublished events in order, and desired states that may be written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, delete, exists, func, or_, select, update
from sqlmodel import Session, col

from services.scheduler.models import DesiredRow, JobRow, OutboxRow

KEPT_SECONDS = 7 * 86_400.0
"""Events of jobs that ended longer ago are not published again on a new stream, and are removed."""


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """An event that JOBS does not hold yet."""

    id: int
    job: str
    subject: str
    message_id: str
    event: str
    traceparent: str | None
    at: float


@dataclass(frozen=True, slots=True)
class PendingDesired:
    """A key of `ctl` that is not as it should be; an empty entry removes it."""

    host: str
    job: str
    version: int
    entry: str | None


def unpublished(session: Session, after: int, limit: int) -> list[PendingEvent]:
    """Return events in order of decision."""
    rows = session.scalars(
        select(OutboxRow)
        .where(col(OutboxRow.published).is_(None), col(OutboxRow.id) > after)
        .order_by(col(OutboxRow.id))
        .limit(limit)
    )
    return [
        PendingEvent(
            row.id or 0, row.job, row.subject, row.message_id, row.event, row.traceparent, row.at
        )
        for row in rows
    ]


def mark_published(session: Session, ids: Sequence[int], epoch: str) -> None:
    """Note that the stream of `epoch` holds these events."""
    session.execute(update(OutboxRow).where(col(OutboxRow.id).in_(ids)).values(published=epoch))


def publish_again(session: Session, epoch: str) -> int:
    """Have everything published to another epoch published again; return how many events that is."""
    done = session.execute(
        update(OutboxRow)
        .where(col(OutboxRow.published).is_not(None), col(OutboxRow.published) != epoch)
        .values(published=None)
    )
    return int(done.rowcount)  # type: ignore[attr-defined]


def prune(session: Session, now: float) -> int:
    """Remove published events of jobs that ended KEPT_SECONDS ago; return how many."""
    old = exists().where(
        col(JobRow.id) == col(OutboxRow.job),
        col(JobRow.ended),
        col(JobRow.finished_at) < now - KEPT_SECONDS,
    )
    done = session.execute(delete(OutboxRow).where(col(OutboxRow.published).is_not(None), old))
    return int(done.rowcount)  # type: ignore[attr-defined]


def unwritten(session: Session, epoch: str, limit: int) -> list[PendingDesired]:
    """Return desired states that the `ctl` of `epoch` lacks and whose events are all published."""
    first = session.scalar(select(func.min(OutboxRow.id)).where(col(OutboxRow.published).is_(None)))
    query = select(DesiredRow).where(
        or_(
            col(DesiredRow.version) != col(DesiredRow.written_version),
            col(DesiredRow.written_epoch) != epoch,
        )
    )
    if first is not None:
        query = query.where(col(DesiredRow.outbox_id) < first)
    rows = session.scalars(query.order_by(col(DesiredRow.outbox_id)).limit(limit))
    return [PendingDesired(r.host, r.job, r.version, r.entry) for r in rows]


def mark_written(session: Session, done: Iterable[PendingDesired], epoch: str) -> None:
    """Note what `ctl` now says; a key that was removed needs no row any more."""
    for one in done:
        key = and_(
            col(DesiredRow.host) == one.host,
            col(DesiredRow.job) == one.job,
            col(DesiredRow.version) == one.version,
        )
        if one.entry is None:
            session.execute(delete(DesiredRow).where(key))
        else:
            session.execute(
                update(DesiredRow)
                .where(key)
                .values(written_version=one.version, written_epoch=epoch)
            )


def all_desired(session: Session) -> dict[tuple[str, str], str]:
    """Return every desired state by (host, job), for comparison with `ctl`."""
    rows = session.scalars(select(DesiredRow).where(col(DesiredRow.entry).is_not(None)))
    return {(row.host, row.job): row.entry or "" for row in rows}


def rewrite(session: Session, keys: Iterable[tuple[str, str]]) -> None:
    """Have these desired states written again."""
    for host, job in keys:
        session.execute(
            update(DesiredRow)
            .where(col(DesiredRow.host) == host, col(DesiredRow.job) == job)
            .values(written_epoch="")
        )
