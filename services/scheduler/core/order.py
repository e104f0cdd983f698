"""The queue: waiting jobs grouped by equal demand, each group in order of priority and age.

Equal demands have equal fates within one decision, so a decision looks at groups, not at jobs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.scheduler.core.words import Why

Rank = tuple[int, int, str]
"""(minus priority, order of arrival, job): smaller goes first, and no two are equal."""


@dataclass(frozen=True, slots=True)
class Ask:
    """All that decides where a ready job may go; jobs with equal asks are interchangeable but for their rank."""

    num_gpus: int
    gpu_type: str | None = None
    pin: str | None = None
    memory_mib: int = 0
    outgrown_mib: int = 0
    sources: tuple[frozenset[str], ...] = ()
    """For each checkpoint it needs: where one can be read (host ids, shared folders)."""
    prefer: str | None = None
    """Where its newest checkpoint lies."""
    avoid: frozenset[str] = frozenset()
    """Hosts that refused it lately."""

    @property
    def pool(self) -> tuple[str | None, str | None, tuple[frozenset[str], ...]]:
        """Return what tells apart queues that cannot block each other: GPU type, pin, bound hosts."""
        return (self.gpu_type, self.pin, self.sources)


@dataclass(frozen=True, slots=True)
class Waits:
    """A job that no host could be given yet, whatever is free; looked at again at `due`."""

    why: Why
    due: datetime | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A job that goes to the first host that fits; `due`: when a refusal is forgiven."""

    ask: Ask
    due: datetime | None = None


Standing = Waits | Ready


@dataclass(frozen=True, slots=True)
class Queue:
    """Where every waiting job stands; `changed` gives the next one."""

    classes: Mapping[Ask, tuple[Rank, ...]] = field(default_factory=dict)
    waits: Mapping[str, Why] = field(default_factory=dict)
    due: Mapping[str, datetime] = field(default_factory=dict)
    standing: Mapping[str, tuple[Rank, Standing]] = field(default_factory=dict)

    def changed(self, updates: Mapping[str, tuple[Rank, Standing] | None]) -> Queue:
        """Return the queue with each job of `updates` at its new place, or gone where that is None."""
        real = {job: new for job, new in updates.items() if self.standing.get(job) != new}
        if not real:
            return self
        classes, waits = dict(self.classes), dict(self.waits)
        due, standing = dict(self.due), dict(self.standing)
        for job, new in real.items():
            old = standing.pop(job, None)
            if old is not None:
                _leave(job, old, classes, waits)
                due.pop(job, None)
            if new is not None:
                standing[job] = new
                _enter(job, new, classes, waits)
                if new[1].due is not None:
                    due[job] = new[1].due
        return Queue(classes, waits, due, standing)


def _leave(
    job: str,
    old: tuple[Rank, Standing],
    classes: dict[Ask, tuple[Rank, ...]],
    waits: dict[str, Why],
) -> None:
    rank, standing = old
    if isinstance(standing, Waits):
        del waits[job]
        return
    ranks = classes[standing.ask]
    at = bisect_left(ranks, rank)
    rest = ranks[:at] + ranks[at + 1 :]
    if rest:
        classes[standing.ask] = rest
    else:
        del classes[standing.ask]


def _enter(
    job: str,
    new: tuple[Rank, Standing],
    classes: dict[Ask, tuple[Rank, ...]],
    waits: dict[str, Why],
) -> None:
    rank, standing = new
    if isinstance(standing, Waits):
        waits[job] = standing.why
        return
    ranks = classes.get(standing.ask, ())
    at = bisect_left(ranks, rank)
    classes[standing.ask] = (*ranks[:at], rank, *ranks[at:])
