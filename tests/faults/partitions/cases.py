"""Which cuts a job meets, and the times in force.

They are as short as a busy machine allows, where a heartbeat may take seconds: a host is silent after 10.7 s, a run without a lease is stopped
by its host after 12 s and placed elsewhere after 17.7 s at the earliest.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.partitions.cuts import Way
from tests.faults.partitions.reading import Terms

LEASE, GRACE, STOP_AFTER, KILL_GRACE, MARGIN, BEAT = 10.0, 0.5, 12.0, 1.5, 4.0, 0.5
SILENT_AFTER = LEASE * 1.02 + GRACE
REQUEUE_AFTER = STOP_AFTER * 1.02 + KILL_GRACE + MARGIN
SETTINGS = {
    "TRAINYARD_SCHEDULER_LEASE_TTL": str(LEASE),
    "TRAINYARD_SCHEDULER_GRACE": str(GRACE),
    "TRAINYARD_SCHEDULER_STOP_AFTER": str(STOP_AFTER),
    "TRAINYARD_SCHEDULER_KILL_GRACE": str(KILL_GRACE),
    "TRAINYARD_SCHEDULER_REQUEUE_MARGIN": str(MARGIN),
    "TRAINYARD_AGENT_HEARTBEAT_SECONDS": str(BEAT),
}
READ_SECONDS = 75.0
"""What a cut does to a job is to be read by then; the judge says whether it was in time.

A host that hears nothing is heard until its link is given up, which takes 30 s (`shared.bus.link`); from then on silence counts.
"""


@dataclass(frozen=True)
class Break:
    """One cut to come: for `seconds`, or beyond the lease, until users read what it does to the job."""

    way: Way
    seconds: float | None = None


@dataclass(frozen=True)
class Case:
    """One host and its job, and the cuts between the host and the broker, one after another."""

    policy: str
    breaks: tuple[Break, ...]
    shared: bool = False
    """Checkpoints lie in a folder that the shelter reads too."""
    pause: float = 1.0
    """Seconds between two cuts, once users read that the host is back."""

    @property
    def may_move(self) -> bool:
        """Tell whether the scheduler gives up its attempt."""
        longest = max(READ_SECONDS if b.seconds is None else b.seconds for b in self.breaks)
        return self.policy == "stop_and_requeue" and longest > SILENT_AFTER


def terms(heal: float) -> Terms:
    """Return the times in force; `heal`: what a connection may need to carry again."""
    return Terms(
        SILENT_AFTER, BEAT, late=6.0, late_deaf=14.0, heal=heal, requeue_after=REQUEUE_AFTER
    )
