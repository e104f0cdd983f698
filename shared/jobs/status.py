"""What a job's status can be; why it is so is a Reason (shared.jobs.reasons)."""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """The six states that a user sees."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        """Tell whether no attempt can follow without a user's retry."""
        return self in TERMINAL


TERMINAL = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})


class Desired(StrEnum):
    """What the scheduler wants of a run on a host; the only thing it ever tells an agent."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"
    COLLECT = "collect"
    """The job was deleted: remove its files."""


class DisconnectPolicy(StrEnum):
    """What happens to a job whose host went silent."""

    KEEP = "keep"
    STOP_AND_REQUEUE = "stop_and_requeue"
