"""The api's two databases as tables in memory, below the product's own projections."""

from __future__ import annotations

import functools
import itertools
from typing import Any

from sqlalchemy import Insert, Select
from sqlalchemy.sql.dml import Delete
from sqlalchemy.sql.elements import BooleanClauseList

from services.api.telemetry.ledger import Attempt, Ledger, LiveJob
from tests.faults.simulation.checks import Checks

_KEYS = {
    "JobRow": ("uuid",),
    "AttemptRow": ("job", "attempt"),
    "CheckpointRow": ("job", "step"),
    "JobEventRow": ("job", "job_n"),
    "HostRow": ("id",),
}


class MemorySession:
    """The few calls of a session that the projections make."""

    def __init__(self) -> None:
        """Begin empty."""
        self.rows: dict[str, dict[Any, Any]] = {name: {} for name in _KEYS}

    def get(self, model: type[Any], key: Any) -> Any:
        """Return a row or None."""
        return self.rows[model.__name__].get(key)

    def get_one(self, model: type[Any], key: Any) -> Any:
        """Return a row."""
        return self.rows[model.__name__][key]

    def add(self, row: Any) -> None:
        """Keep a row."""
        names = _KEYS[type(row).__name__]
        key = tuple(getattr(row, name) for name in names)
        self.rows[type(row).__name__][key if len(key) > 1 else key[0]] = row

    def flush(self) -> None:
        """Everything is written at once."""

    def execute(self, statement: Any, values: Any = None) -> Any:
        """Read rows by `IN`, keep history, remove a job's; the other update clears `best`, which nothing here looks at."""
        if isinstance(statement, Select):
            return self._select(statement, values)
        if isinstance(statement, Insert):
            history = self.rows["JobEventRow"]
            for one in values:
                history[one["job"], one["job_n"]] = one
        if isinstance(statement, Delete):
            job = next(iter(statement.compile().params.values()))
            for name in ("AttemptRow", "CheckpointRow", "JobEventRow"):
                rows = self.rows[name]
                for key in [k for k in rows if k[0] == job]:
                    del rows[key]
        return None

    def _select(self, statement: Any, values: dict[str, Any]) -> Any:
        name, wanted = _meaning(statement)
        rows = self.rows[name]
        if len(_KEYS[name]) == 1:
            return ScalarRows([rows[key] for key in values[wanted[0]] if key in rows])
        firsts, seconds = (values[parameter] for parameter in wanted)
        keys = [key for key in itertools.product(firsts, seconds) if key in rows]
        return ScalarRows(keys if name == "JobEventRow" else [rows[key] for key in keys])


@functools.cache
def _meaning(statement: Any) -> tuple[str, tuple[str, ...]]:
    """Return the table of a statement that was made once, and the parameter of each column of its key."""
    name = statement.column_descriptions[0]["entity"].__name__
    where = statement.whereclause
    clauses = where.clauses if isinstance(where, BooleanClauseList) else (where,)
    found = {c.left.key: c.right.key for c in clauses}
    return name, tuple(found[column] for column in _KEYS[name])


class ScalarRows(list[Any]):
    """What a statement found; of the history its keys, which is all that is asked for."""

    def scalars(self) -> Any:
        """Return the rows."""
        return self


class MemoryLedger(Ledger):
    """Telemetry's rows; each line goes to the checks."""

    def __init__(self, checks: Checks) -> None:
        """Begin empty."""
        self.checks = checks
        self.jobs: dict[str, LiveJob] = {}
        self.attempts: dict[tuple[str, int], Attempt] = {}

    def job(self, job: str) -> LiveJob:
        """Return a job's row, made when it is not there."""
        return self.jobs.setdefault(job, LiveJob(id=0, job=job, frame_seq=0))

    def add_record(self, live: LiveJob, attempt: int | None, columns: dict[str, Any]) -> int:
        """Store one record."""
        if columns["type"] == "checkpoint":
            self.checks.stored(live.job, attempt or 0, "run", columns["step"])
        return live.next_seq()

    def add_line(self, live: LiveJob, columns: dict[str, Any], points: int) -> None:
        """Store one metric line."""
        self.checks.stored(live.job, columns["attempt"], "met", columns["step"])

    def end(self, live: LiveJob, seq: int) -> None:
        """Mark the last frame."""
        live.ended_seq = seq
