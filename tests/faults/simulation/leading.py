"""The leader's row in memory, below the product's own statements about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from services.scheduler.models import LeaderRow


class LeaderSession:
    """The few calls of a session that services.scheduler.leader makes; every one is a transaction of its own."""

    def __init__(self) -> None:
        """Begin without a leader."""
        self.row: LeaderRow | None = None

    def get(self, _model: type[Any], _key: int, **_: Any) -> LeaderRow | None:
        """Return the row."""
        return self.row

    def add(self, row: LeaderRow) -> None:
        """Keep the row."""
        self.row = row

    def flush(self) -> None:
        """Everything is written at once."""

    def connection(self) -> LeaderSession:
        """Return what carries out statements."""
        return self

    def execute(self, statement: Any, values: dict[str, Any]) -> Any:
        """Carry out an update by equality; tell how many rows it met. `values` are its parameters, then what is set."""
        row, left = self.row, dict(values)
        wanted = {
            c.left.key: left.pop(c.right.key, c.right.value) for c in statement.whereclause.clauses
        }
        if row is None or any(getattr(row, key) != value for key, value in wanted.items()):
            return SimpleNamespace(rowcount=0)
        for name, value in left.items():
            setattr(row, name, value)
        return SimpleNamespace(rowcount=1)
