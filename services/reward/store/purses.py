"""Budgets that hold over a restart: what may be spent is written down before it is spent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from sqlmodel import Session

from services.reward.core import budget
from services.reward.core.budget import Ledger, Purse, Reservation
from services.reward.store.tables import PurseRow
from shared.db import Database

BLOCK_CALLS = 32
"""So many calls of the present size are written down at once: after a crash a purse has at most that much too little."""


class Purses:
    """All purses of this process. `now`: wall clock in seconds, for the rows."""

    def __init__(
        self,
        database: Database | None,
        now: Callable[[], float],
        warn: Callable[[str, Purse], None] = lambda _name, _purse: None,
    ) -> None:
        self._database = database
        self._now = now
        self._warn = warn
        self._written: dict[str, float] = {}
        self._lock = asyncio.Lock()
        self.ledger = Ledger()

    async def open(self, name: str, limit: float | None, *, lasting: bool) -> None:
        """Know a purse, with what it has spent before; a new limit takes effect at once."""
        known = self.ledger.purses.get(name)
        if known is None:
            spent = await self._read(name) if lasting and self._database is not None else 0.0
            known = self.ledger.purses.get(name) or Purse(limit, spent)
            if lasting:
                self._written.setdefault(name, spent)
        purse = Purse(limit, known.spent, known.reserved)
        self.ledger = Ledger({**self.ledger.purses, name: purse})

    def close(self, name: str) -> None:
        """Forget a purse of one request."""
        self.ledger = Ledger({k: p for k, p in self.ledger.purses.items() if k != name})

    async def reserve(self, names: Sequence[str], amount: float) -> Reservation | str:
        """Set `amount` aside in every purse; the name of the first that lacks it, where one does."""
        found = budget.reserve(self.ledger, tuple(names), amount)
        if isinstance(found, str):
            return found
        self.ledger, reservation = found
        try:
            await self._write_ahead(reservation)
        except BaseException:
            self.settle(reservation, 0.0)
            raise
        return reservation

    def settle(self, reservation: Reservation, cost: float) -> None:
        """Turn a reservation into a cost."""
        before = {n: self.ledger.purses[n] for n in reservation.purses if n in self.ledger.purses}
        kept = Reservation(tuple(before), reservation.amount)
        self.ledger = budget.settle(self.ledger, kept, cost)
        for name, purse in before.items():
            if budget.warns(purse, self.ledger.purses[name]):
                self._warn(name, self.ledger.purses[name])

    def remaining(self, name: str) -> float | None:
        """Return what a purse still has; None where it has no limit."""
        purse = self.ledger.purses.get(name)
        return None if purse is None else purse.remaining

    async def flush(self) -> None:
        """Write what was really spent, at a stop in good order."""
        for name in list(self._written):
            await self._write(name, self.ledger.purses[name].spent)

    async def _write_ahead(self, reservation: Reservation) -> None:
        for name in reservation.purses:
            if name not in self._written or self._database is None:
                continue
            async with self._lock:
                purse = self.ledger.purses[name]
                needed = purse.spent + purse.reserved
                if needed > self._written[name]:
                    await self._write(name, needed + BLOCK_CALLS * reservation.amount)

    async def _read(self, name: str) -> float:
        assert self._database is not None
        row = await self._database.read(lambda session: session.get(PurseRow, name))
        return 0.0 if row is None else row.spent

    async def _write(self, name: str, spent: float) -> None:
        if self._database is None:
            return
        at = self._now()

        def work(session: Session) -> None:
            session.merge(PurseRow(name=name, spent=spent, updated_at=at))

        await self._database.write(work)
        self._written[name] = spent
