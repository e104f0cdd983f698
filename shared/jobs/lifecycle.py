"""The life of a job as a table. `evolve` is the one fold of scheduler, projections, tests and docs.

Deciding (may this be cancelled now?) is the scheduler's; this module only says which status a decision leads to.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus


class Change(StrEnum):
    """What can happen to a job; each is the verb of one `job.*` event."""

    QUEUED = "queued"
    ASSIGNED = "assigned"
    RUNNING = "running"
    CHECKPOINTED = "checkpointed"
    STOPPING = "stopping"
    PAUSED = "paused"
    RESUMED = "resumed"
    DISCONNECTED = "disconnected"
    RECONNECTED = "reconnected"
    REQUEUED = "requeued"
    RETRIED = "retried"
    UPDATED = "updated"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    DELETED = "deleted"


_S = JobStatus
TRANSITIONS: dict[tuple[JobStatus, Change], JobStatus] = {
    (_S.PENDING, Change.QUEUED): _S.PENDING,
    (_S.PENDING, Change.ASSIGNED): _S.PENDING,
    (_S.PENDING, Change.UPDATED): _S.PENDING,
    (_S.PENDING, Change.RUNNING): _S.RUNNING,
    (_S.PENDING, Change.STOPPING): _S.PENDING,
    (_S.PENDING, Change.PAUSED): _S.PAUSED,
    (_S.PENDING, Change.REQUEUED): _S.PENDING,
    (_S.PENDING, Change.CHECKPOINTED): _S.PENDING,
    (_S.PENDING, Change.DISCONNECTED): _S.PENDING,
    (_S.PENDING, Change.RECONNECTED): _S.PENDING,
    (_S.PENDING, Change.COMPLETED): _S.COMPLETED,
    (_S.PENDING, Change.FAILED): _S.FAILED,
    (_S.PENDING, Change.CANCELLED): _S.CANCELLED,
    (_S.PENDING, Change.REJECTED): _S.FAILED,
    (_S.RUNNING, Change.CHECKPOINTED): _S.RUNNING,
    (_S.RUNNING, Change.UPDATED): _S.RUNNING,
    (_S.RUNNING, Change.STOPPING): _S.RUNNING,
    (_S.RUNNING, Change.DISCONNECTED): _S.RUNNING,
    (_S.RUNNING, Change.RECONNECTED): _S.RUNNING,
    (_S.RUNNING, Change.PAUSED): _S.PAUSED,
    (_S.RUNNING, Change.REQUEUED): _S.PENDING,
    (_S.RUNNING, Change.COMPLETED): _S.COMPLETED,
    (_S.RUNNING, Change.FAILED): _S.FAILED,
    (_S.RUNNING, Change.CANCELLED): _S.CANCELLED,
    (_S.PAUSED, Change.UPDATED): _S.PAUSED,
    (_S.PAUSED, Change.CHECKPOINTED): _S.PAUSED,
    (_S.PAUSED, Change.RESUMED): _S.PENDING,
    (_S.PAUSED, Change.CANCELLED): _S.CANCELLED,
    (_S.COMPLETED, Change.UPDATED): _S.COMPLETED,
    (_S.COMPLETED, Change.DELETED): _S.COMPLETED,
    (_S.FAILED, Change.UPDATED): _S.FAILED,
    (_S.FAILED, Change.RETRIED): _S.PENDING,
    (_S.FAILED, Change.DELETED): _S.FAILED,
    (_S.CANCELLED, Change.UPDATED): _S.CANCELLED,
    (_S.CANCELLED, Change.RETRIED): _S.PENDING,
    (_S.CANCELLED, Change.DELETED): _S.CANCELLED,
}


class Bilingual(BaseModel):
    """One sentence in both languages."""

    model_config = ConfigDict(frozen=True)

    en: str
    zh: str


class JobState(BaseModel):
    """All that the scheduler decides about a job; every `job.*` event carries it whole.

    Transfer of the whole state makes a projection trivial: apply it when `job_n` is higher.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    job: str
    job_n: int = 0
    """Dense number of this job's events, from 1."""
    req_n: int = 0
    """The last request of the user that this state has answered."""
    status: JobStatus = JobStatus.PENDING
    reason: Reason | None = None
    message: Bilingual | None = None
    """Details beyond the reason's own sentence, such as the trainer's error."""
    waiting_for: Bilingual | None = None
    """Why it waits, in words with numbers."""
    note: Bilingual | None = None
    """Why the last request changed nothing, where that is so."""
    attempt: int = 0
    """Fencing token: 0 before the first assignment, then one higher with each."""
    retries_spent: int = 0
    host: str | None = None
    gpus: tuple[int, ...] = ()
    gpu_uuids: tuple[str, ...] = ()
    priority: int = 0
    model_path: str | None = None
    """`model_path` frozen at assignment: folder and step of the checkpoint that `job:` named."""
    checkpoint_dir: str | None = None
    last_step: int | None = None
    """Step of the newest complete checkpoint."""
    final_seq: dict[str, int] | None = None
    """Last sequence number of every kind in the ended attempt; the terminal frame waits for them."""
    final_metrics: dict[str, float | None] | None = None
    stop_requested: str | None = None
    """`cancel`, `pause` or `drain` while a stop is on its way to the host."""
    deleted: bool = False
    submitted_at: datetime | None = None
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    def __hash__(self) -> int:
        """Hash by identity in the feed."""
        return hash((self.job, self.job_n))


def evolve(state: JobState, change: Change, **fields: Any) -> JobState:
    """Return the state after `change`, with `fields` set and `job_n` one higher.

    Raises ValueError when the table has no such transition: the caller decided wrongly.
    """
    target = TRANSITIONS.get((state.status, change))
    if target is None:
        raise ValueError(f"{state.job}: {change} is not possible in status {state.status}")
    return JobState.model_validate(
        state.model_dump() | {"status": target, "job_n": state.job_n + 1} | fields
    )


def may(status: JobStatus, change: Change) -> bool:
    """Tell whether the table has this transition."""
    return (status, change) in TRANSITIONS
