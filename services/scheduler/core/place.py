"""`schedule`: which waiting job goes where, and why each of the others waits.

The rule against starvation. Jobs are looked at by priority, then age. A job that finds no room, but that some online
host could hold if idle, has that host kept for it: no job behind it starts there until it has started itself. At each
priority the first blocked job of every pool (GPU type, pin, bound hosts) keeps one host, and goes on keeping the same
one. Jobs behind it fill every other host. How long a run takes is not known, so a GPU on a kept host that is lent
might come back late: none is lent.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush

from services.scheduler.core.fleet import Fleet
from services.scheduler.core.order import Ask, Rank
from services.scheduler.core.readiness import with_due
from services.scheduler.core.state import Assignment, ClusterState, Moment, Plan
from services.scheduler.core.words import Why


def schedule(state: ClusterState, now: Moment, limit: int | None = None) -> Plan:
    """Return assignments (at most `limit`), reservations, and why every other waiting job waits.

    10,000 queued jobs on 500 hosts: the work grows with the number of different demands and of
    assignments, not with jobs times hosts (benchmarks/schedule.py).
    """
    queue = with_due(state, now.wall)
    return _Round(state, Fleet(state.hosts), limit).run(queue.classes, queue.waits)


class _Round:
    """One decision in the making."""

    def __init__(self, state: ClusterState, fleet: Fleet, limit: int | None) -> None:
        self.state = state
        self.fleet = fleet
        self.limit = limit
        self.assignments: list[Assignment] = []
        self.reservations: dict[str, str] = {}
        self.blocked: list[tuple[Why, tuple[Rank, ...]]] = []
        self.keeping: set[tuple[int, object]] = set()

    def run(self, classes: Mapping[Ask, tuple[Rank, ...]], unready: Mapping[str, Why]) -> Plan:
        """Go through all groups in order of their first job; a group that is stuck is left at once."""
        groups = list(classes.items())
        heap = [(ranks[0], number, 0) for number, (_, ranks) in enumerate(groups)]
        heapify(heap)
        while heap:
            rank, number, position = heappop(heap)
            ask, ranks = groups[number]
            if self.limit is not None and len(self.assignments) >= self.limit:
                return self._plan(unready, partial=True)
            if self._assign(ask, rank[-1]):
                if position + 1 < len(ranks):
                    heappush(heap, (ranks[position + 1], number, position + 1))
                continue
            self.blocked.append((self.fleet.why(ask), ranks[position:]))
            self._reserve(ask, rank)
        return self._plan(unready, partial=False)

    def _plan(self, unready: Mapping[str, Why], *, partial: bool) -> Plan:
        return Plan(
            tuple(self.assignments), self.reservations, unready, tuple(self.blocked), partial
        )

    def _assign(self, ask: Ask, job: str) -> bool:
        found = self.fleet.best(ask)
        if found is None:
            return False
        host, gpus = found
        self.fleet.take(host, gpus)
        self.assignments.append(
            Assignment(job, host, tuple(g.index for g in gpus), tuple(g.uuid for g in gpus))
        )
        return True

    def _reserve(self, ask: Ask, rank: Rank) -> None:
        """Keep a host for the first blocked job of each pool at each priority."""
        place = (rank[0], ask.pool)
        if place in self.keeping:
            return
        job = rank[-1]
        host = self.fleet.reservable(ask, self.state.reservations.get(job))
        if host is not None:
            self.keeping.add(place)
            self.fleet.keep(host, self.state.jobs[job].name or job)
            self.reservations[job] = host
