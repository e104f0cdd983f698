"""The rows of some jobs inside one write transaction: counters are read once, raised in memory, written once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import bindparam, insert, select, update
from sqlmodel import Session

from services.api.telemetry import tables
from services.api.telemetry.records import Row, record_row
from shared.events.run import KINDS, Kind
from shared.jobs.lifecycle import JobState

IN_LIMIT = 500
"""Values in one IN list."""

# The columns that are set are those of the rows given; the keys are named apart from them.
_UPDATE_LIVE = update(tables.job_live).where(tables.job_live.c.id == bindparam("key"))
_UPDATE_ATTEMPT = update(tables.attempt).where(
    tables.attempt.c.job_id == bindparam("key"), tables.attempt.c.attempt == bindparam("number")
)


@dataclass(slots=True)
class LiveJob:
    """One row of `job_live`."""

    id: int
    job: str
    frame_seq: int
    job_n: int = 0
    state: JobState | None = None
    pending: JobState | None = None
    ended_seq: int | None = None
    deleted: int = 0
    latest: dict[str, list[Any]] = field(default_factory=dict)
    latest_step: float | None = None
    latest_attempt: int = 0
    progress: dict[str, Any] | None = None
    capped: bool = False
    tail_lines: int = 0
    tail_points: int = 0

    def next_seq(self) -> int:
        """Allot the number of one more frame."""
        self.frame_seq += 1
        return self.frame_seq


@dataclass(slots=True)
class Attempt:
    """One row of `attempt`: who may write, and how far each kind is stored."""

    job_id: int
    attempt: int
    host: str | None
    fenced: bool = False
    fenced_at: float | None = None
    """Broker's time, in seconds since the epoch, of the assignment that fenced it; None: before every batch."""
    ended: bool = False
    seq: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    is_new: bool = False


@dataclass(slots=True)
class Written:
    """What one transaction stored for one job; rows are in the order of their frames."""

    records: list[Row] = field(default_factory=list)
    lines: list[Row] = field(default_factory=list)
    ended_seq: int | None = None


class Ledger:
    """Loads jobs and attempts on demand; `flush` writes everything that was collected."""

    def __init__(self, session: Session, jobs: Iterable[str], frame_base: int = 0) -> None:
        """Load the rows of `jobs`; new ones count frames from `frame_base`."""
        self._session = session
        self._base = frame_base
        self.jobs: dict[str, LiveJob] = {}
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self.written: dict[str, Written] = {}
        wanted = sorted(set(jobs))
        for start in range(0, len(wanted), IN_LIMIT):
            self._load(wanted[start : start + IN_LIMIT])

    def _load(self, jobs: list[str]) -> None:
        c = tables.job_live.c
        for row in self._session.execute(select(tables.job_live).where(c.job.in_(jobs))).mappings():
            self.jobs[row["job"]] = live_of(row)
        names = {live.id: name for name, live in self.jobs.items()}
        ids = [self.jobs[job].id for job in jobs if job in self.jobs]
        a = tables.attempt.c
        for row in self._session.execute(
            select(tables.attempt).where(a.job_id.in_(ids))
        ).mappings():
            self.attempts[names[row["job_id"]], row["attempt"]] = attempt_of(row)

    def job(self, job: str) -> LiveJob:
        """Return a job's row, made when it is not there."""
        live = self.jobs.get(job)
        if live is None:
            live = LiveJob(id=0, job=job, frame_seq=self._base)
            statement = insert(tables.job_live).values(**_live_columns(live), job=job)
            live.id = int(
                self._session.execute(statement.returning(tables.job_live.c.id)).scalar_one()
            )
            self.jobs[job] = live
        return live

    def attempts_of(self, job: str) -> list[Attempt]:
        """Return all attempts of a loaded job."""
        return [row for (name, _), row in self.attempts.items() if name == job]

    def add_attempt(self, live: LiveJob, attempt: int, host: str | None) -> Attempt:
        """Note that `attempt` was assigned to `host`."""
        row = Attempt(live.id, attempt, host, is_new=True)
        self.attempts[live.job, attempt] = row
        return row

    def add_record(self, live: LiveJob, attempt: int | None, columns: Row) -> int:
        """Store one row of `record` under the job's next frame number and return that."""
        seq = live.next_seq()
        self._of(live).records.append(record_row(live.id, seq, attempt, columns))
        return seq

    def add_line(self, live: LiveJob, columns: Row, points: int) -> None:
        """Store one metric line under the job's next frame number."""
        self._of(live).lines.append({"job_id": live.id, "seq": live.next_seq(), **columns})
        live.tail_lines += 1
        live.tail_points += points

    def end(self, live: LiveJob, seq: int) -> None:
        """Mark the frame after which the live feed of this job closes."""
        live.ended_seq = seq
        self._of(live).ended_seq = seq

    def _of(self, live: LiveJob) -> Written:
        return self.written.setdefault(live.job, Written())

    def flush(self) -> None:
        """Write rows, counters and sequence numbers."""
        records = [row for part in self.written.values() for row in part.records]
        lines = [row for part in self.written.values() for row in part.lines]
        if records:
            self._session.execute(insert(tables.record), records)
        if lines:
            self._session.execute(insert(tables.metric_line), lines)
        if self.jobs:
            rows = [{"key": live.id, **_live_columns(live)} for live in self.jobs.values()]
            self._session.connection().execute(_UPDATE_LIVE, rows)
        self._flush_attempts()

    def _flush_attempts(self) -> None:
        new: list[Row] = []
        old: list[Row] = []
        for row in self.attempts.values():
            values = {
                "host": row.host,
                "fenced": row.fenced,
                "fenced_at": row.fenced_at,
                "ended": row.ended,
                **{f"{kind}_seq": row.seq[kind] for kind in KINDS},
            }
            if row.is_new:
                new.append({"job_id": row.job_id, "attempt": row.attempt, **values})
                row.is_new = False
            else:
                old.append({"key": row.job_id, "number": row.attempt, **values})
        if new:
            self._session.execute(insert(tables.attempt), new)
        if old:
            self._session.connection().execute(_UPDATE_ATTEMPT, old)


def live_of(row: Any) -> LiveJob:
    """Read one row of `job_live`."""
    return LiveJob(
        id=row["id"],
        job=row["job"],
        frame_seq=row["frame_seq"],
        job_n=row["job_n"],
        state=JobState.model_validate_json(row["state"]) if row["state"] else None,
        pending=JobState.model_validate_json(row["pending"]) if row["pending"] else None,
        ended_seq=row["ended_seq"],
        deleted=row["deleted"],
        latest=orjson.loads(row["latest"]),
        latest_step=row["latest_step"],
        latest_attempt=row["latest_attempt"],
        progress=orjson.loads(row["progress"]) if row["progress"] else None,
        capped=row["capped"],
        tail_lines=row["tail_lines"],
        tail_points=row["tail_points"],
    )


def attempt_of(row: Any) -> Attempt:
    """Read one row of `attempt`."""
    return Attempt(
        job_id=row["job_id"],
        attempt=row["attempt"],
        host=row["host"],
        fenced=row["fenced"],
        fenced_at=row["fenced_at"],
        ended=row["ended"],
        seq={kind: row[f"{kind}_seq"] for kind in KINDS},
    )


def _live_columns(live: LiveJob) -> dict[str, Any]:
    return {
        "frame_seq": live.frame_seq,
        "job_n": live.job_n,
        "state": live.state.model_dump_json() if live.state else None,
        "pending": live.pending.model_dump_json() if live.pending else None,
        "ended_seq": live.ended_seq,
        "deleted": live.deleted,
        "latest": orjson.dumps(live.latest).decode(),
        "latest_step": live.latest_step,
        "latest_attempt": live.latest_attempt,
        "progress": orjson.dumps(live.progress).decode() if live.progress else None,
        "capped": live.capped,
        "tail_lines": live.tail_lines,
        "tail_points": live.tail_points,
    }
