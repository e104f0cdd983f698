"""The fence at the store: whose facts about an attempt count, decided from what the scheduler assigned."""

from __future__ import annotations

from enum import StrEnum

from sqlmodel import Session

from services.api.db.tables import AttemptRow, JobRow
from shared.events.subjects import RunSubject


class Verdict(StrEnum):
    """What becomes of a fact or a batch."""

    STORE = "store"
    REPEATED = "repeated"
    GAP = "gap"
    UNKNOWN_ATTEMPT = "unknown_attempt"
    """No assignment is known yet: read JOBS up to its end, then ask again."""
    WRONG_HOST = "wrong_host"
    STALE = "stale"
    """A newer attempt exists elsewhere and this one never ended properly: a zombie."""
    DELETED = "deleted"

    @property
    def is_refusal(self) -> bool:
        """Tell whether it is counted and not stored, and its host told so."""
        return self in {Verdict.WRONG_HOST, Verdict.STALE, Verdict.DELETED}


def verdict(session: Session, subject: RunSubject) -> Verdict:
    """Return STORE, or why what `subject`'s host says of this attempt is not stored.

    An attempt that ended properly (its last numbers are known) is stored to its end, however late it arrives; one
    that was given up while its host was silent is fenced as soon as a newer attempt exists on another host. On the same
    host the newer one has begun only after it was over, from what it had saved.
    """
    job = session.get(JobRow, subject.job)
    if job is not None and (job.state or {}).get("deleted"):
        return Verdict.DELETED
    row = session.get(AttemptRow, (subject.job, subject.attempt))
    if job is None or row is None:
        older = job is not None and subject.attempt < job.attempt
        return Verdict.STALE if older else Verdict.UNKNOWN_ATTEMPT
    if row.host != subject.host:
        return Verdict.WRONG_HOST
    if row.final_seq is None and _moved(session, subject, job.attempt):
        return Verdict.STALE
    return Verdict.STORE


def _moved(session: Session, subject: RunSubject, newest: int) -> bool:
    """Tell whether a newer attempt was given to another host."""
    newer = (
        session.get(AttemptRow, (subject.job, number))
        for number in range(subject.attempt + 1, newest + 1)
    )
    return any(row is not None and row.host != subject.host for row in newer)
