"""What the scheduler decided: `job.<job>` and `host.<host>`, a feed whose truth is the scheduler's SQL."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from shared.events.base import EventBase
from shared.jobs.lifecycle import Change, JobState
from shared.jobs.resources import HostInventory


class JobEventBase(EventBase):
    """Every job event carries the whole state after the change."""

    at: datetime
    state: JobState

    @property
    def change(self) -> Change:
        """Return the verb: `job.<verb>.v1`."""
        type_: str = getattr(self, "type")  # noqa: B009 - declared by every subclass
        return Change(type_.split(".")[1])


class JobQueued(JobEventBase):
    """Accepted by the scheduler and waiting."""

    type: Literal["job.queued.v1"] = "job.queued.v1"


class JobAssigned(JobEventBase):
    """Given to a host as a new attempt."""

    type: Literal["job.assigned.v1"] = "job.assigned.v1"


class JobRunning(JobEventBase):
    """Its trainer process is there."""

    type: Literal["job.running.v1"] = "job.running.v1"


class JobCheckpointed(JobEventBase):
    """A complete checkpoint can be read."""

    type: Literal["job.checkpointed.v1"] = "job.checkpointed.v1"


class JobStopping(JobEventBase):
    """A cancel, pause or drain is on its way to the host."""

    type: Literal["job.stopping.v1"] = "job.stopping.v1"


class JobPaused(JobEventBase):
    """Stopped with a checkpoint; its GPUs are free."""

    type: Literal["job.paused.v1"] = "job.paused.v1"


class JobResumed(JobEventBase):
    """Back in the queue after a pause."""

    type: Literal["job.resumed.v1"] = "job.resumed.v1"


class JobDisconnected(JobEventBase):
    """Its host is silent."""

    type: Literal["job.disconnected.v1"] = "job.disconnected.v1"


class JobReconnected(JobEventBase):
    """Its host is back."""

    type: Literal["job.reconnected.v1"] = "job.reconnected.v1"


class JobRequeued(JobEventBase):
    """The attempt ended without a verdict on the job; it waits for the next one."""

    type: Literal["job.requeued.v1"] = "job.requeued.v1"


class JobRetried(JobEventBase):
    """Reopened by the user."""

    type: Literal["job.retried.v1"] = "job.retried.v1"


class JobUpdated(JobEventBase):
    """Something to show changed (why it waits, its priority, a note), not its status."""

    type: Literal["job.updated.v1"] = "job.updated.v1"


class JobCompleted(JobEventBase):
    """Ended well."""

    type: Literal["job.completed.v1"] = "job.completed.v1"


class JobFailed(JobEventBase):
    """Ended with a reason and a remedy."""

    type: Literal["job.failed.v1"] = "job.failed.v1"


class JobCancelled(JobEventBase):
    """Ended by a user, or because a job before it failed."""

    type: Literal["job.cancelled.v1"] = "job.cancelled.v1"


class JobRejected(JobEventBase):
    """The scheduler could not read the submitted configuration."""

    type: Literal["job.rejected.v1"] = "job.rejected.v1"


class JobDeleted(JobEventBase):
    """A tombstone; files are being collected."""

    type: Literal["job.deleted.v1"] = "job.deleted.v1"


class HostUpdated(EventBase):
    """What is known of a host, whole, on change and every 15 s."""

    type: Literal["host.updated.v1"] = "host.updated.v1"
    at: datetime
    host: str
    host_n: int
    label: str
    online: bool
    drained: bool
    forgotten: bool = False
    last_seen: datetime | None = None
    inventory: HostInventory | None = None
    runs: tuple[str, ...] = ()
    """Jobs that hold GPUs there."""


JobEvent = (
    JobQueued
    | JobAssigned
    | JobRunning
    | JobCheckpointed
    | JobStopping
    | JobPaused
    | JobResumed
    | JobDisconnected
    | JobReconnected
    | JobRequeued
    | JobRetried
    | JobUpdated
    | JobCompleted
    | JobFailed
    | JobCancelled
    | JobRejected
    | JobDeleted
)

JOB_EVENTS: dict[Change, type[JobEventBase]] = {
    Change.QUEUED: JobQueued,
    Change.ASSIGNED: JobAssigned,
    Change.RUNNING: JobRunning,
    Change.CHECKPOINTED: JobCheckpointed,
    Change.STOPPING: JobStopping,
    Change.PAUSED: JobPaused,
    Change.RESUMED: JobResumed,
    Change.DISCONNECTED: JobDisconnected,
    Change.RECONNECTED: JobReconnected,
    Change.REQUEUED: JobRequeued,
    Change.RETRIED: JobRetried,
    Change.UPDATED: JobUpdated,
    Change.COMPLETED: JobCompleted,
    Change.FAILED: JobFailed,
    Change.CANCELLED: JobCancelled,
    Change.REJECTED: JobRejected,
    Change.DELETED: JobDeleted,
}
