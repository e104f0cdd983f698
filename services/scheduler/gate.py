"""After a restore nothing is placed before the hosts have told which attempts they know: a number is given once only."""

from __future__ import annotations

from collections.abc import Iterable

from services.scheduler import store
from services.scheduler.core.floors import all_reported
from shared.clock import Clock
from shared.db import Database
from shared.restored import FULL_REPORT_SECONDS, RESTORED

WAIT_SECONDS = 60.0
"""A host that does not report for so long after the scheduler's start is waited for no more."""


class Gate:
    """Open where nothing was restored lately."""

    def __init__(self, restored: str, healed_at: float, clock: Clock) -> None:
        """`restored`: id of the last restore, or empty; `healed_at` in Unix seconds."""
        self.restored = restored
        self._clock = clock
        self._reported: set[str] = set()
        self._until = clock.boot() + WAIT_SECONDS
        self._is_old = clock.now().timestamp() - healed_at > FULL_REPORT_SECONDS

    @staticmethod
    async def open(database: Database, clock: Clock) -> Gate:
        """Read what was restored, and when the database had caught up."""
        at = await database.read(lambda session: store.position(session, RESTORED))
        return Gate(at.epoch, float(at.last_seq), clock)

    def note(self, host: str, restored: str) -> bool:
        """Take note of a full report; tell whether it is the first one of this host."""
        if not self.restored or restored != self.restored or host in self._reported:
            return False
        self._reported.add(host)
        return True

    def is_open(self, hosts: Iterable[str]) -> bool:
        """Tell whether jobs may be placed."""
        if not self.restored or self._is_old or self._clock.boot() > self._until:
            return True
        return all_reported(hosts, frozenset(self._reported))
