"""Events of jobs applied to the main database: what is there is read once for all of them, and each table written once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, bindparam, insert, select
from sqlmodel import Session, col

from services.api.db.tables import AttemptRow, JobEventRow, JobRow
from services.api.jobs.forget import drop_history
from shared.events.job import JobEventBase
from shared.jobs.lifecycle import Change, JobState

_ENDS = frozenset(
    {Change.REQUEUED, Change.PAUSED, Change.COMPLETED, Change.FAILED, Change.CANCELLED}
)

_JOBS: BindParameter[Any] = bindparam("jobs", expanding=True)
_NUMBERS: BindParameter[Any] = bindparam("numbers", expanding=True)
_ROWS = select(JobRow).where(col(JobRow.uuid).in_(_JOBS))
_ATTEMPTS = select(AttemptRow).where(
    col(AttemptRow.job).in_(_JOBS), col(AttemptRow.attempt).in_(_NUMBERS)
)
_TOLD = select(col(JobEventRow.job), col(JobEventRow.job_n)).where(
    col(JobEventRow.job).in_(_JOBS), col(JobEventRow.job_n).in_(_NUMBERS)
)
_TELL = insert(JobEventRow)
"""Made once: each costs more to build than to carry out."""


def apply_jobs(session: Session, events: Sequence[JobEventBase]) -> None:
    """Copy the scheduler's states into the rows of their jobs where they are newer, and keep each in the history."""
    if not events:
        return
    batch = _Batch(session, [event.state for event in events])
    for event in events:
        batch.apply(event)
    batch.write()


class _Batch:
    """What the database holds about the jobs of some events, and what is to be added."""

    def __init__(self, session: Session, states: Sequence[JobState]) -> None:
        jobs = list({state.job for state in states})
        numbers = list({state.attempt for state in states})
        counted = list({state.job_n for state in states})
        rows = session.execute(_ROWS, {"jobs": jobs}).scalars()
        attempts = session.execute(_ATTEMPTS, {"jobs": jobs, "numbers": numbers}).scalars()
        told = session.execute(_TOLD, {"jobs": jobs, "numbers": counted})
        self._session = session
        self._rows = {row.uuid: row for row in rows}
        self._attempts = {(row.job, row.attempt): row for row in attempts}
        self._told = {(job, job_n) for job, job_n in told}
        self._new: list[dict[str, Any]] = []

    def apply(self, event: JobEventBase) -> None:
        """Apply one event, in the order of the stream."""
        state = event.state
        document = state.model_dump(mode="json")
        row = self._rows.get(state.job)
        if row is None:
            row = self._rows[state.job] = _found_job(state, event.at)
            self._session.add(row)
        if (state.job, state.job_n) not in self._told and not state.deleted:
            self._told.add((state.job, state.job_n))
            self._new.append(
                {
                    "job": state.job,
                    "job_n": state.job_n,
                    "change": event.change.value,
                    "at": event.at,
                    "state": document,
                }
            )
        if state.job_n > row.job_n:
            _copy(state, document, row)
            if state.deleted:
                row.deleted_at = row.deleted_at or event.at
        self._note_attempt(event)
        if state.deleted:
            self.write()
            drop_history(self._session, state.job)

    def write(self) -> None:
        """Write what was collected."""
        if self._new:
            self._session.execute(_TELL, self._new)
            self._new = []
        self._session.flush()

    def _note_attempt(self, event: JobEventBase) -> None:
        """Remember to whom an attempt was given, and how far its facts go once it has ended."""
        state = event.state
        key = (state.job, state.attempt)
        row = self._attempts.get(key)
        if row is None and state.host and state.attempt >= 1:
            row = self._attempts[key] = AttemptRow(
                job=state.job, attempt=state.attempt, host=state.host, assigned_at=event.at
            )
            self._session.add(row)
        if row is not None and event.change in _ENDS and state.final_seq is not None:
            row.final_seq = row.final_seq or dict(state.final_seq)


def _copy(state: JobState, document: dict[str, Any], row: JobRow) -> None:
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
