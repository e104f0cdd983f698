"""What users asked for: `req.job.<job>` and `req.host.<host>`, written by the api alone."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from shared.events.base import EventBase


class RequestBase(EventBase):
    """`req_n` is dense per job, from 1: a scheduler applies each once, in order."""

    job: str
    req_n: int
    at: datetime


class JobSubmitRequested(RequestBase):
    """A new job, with its whole public configuration (no secret in it)."""

    type: Literal["request.job.submit.v1"] = "request.job.submit.v1"
    name: str
    config: dict[str, Any]
    secret_names: tuple[str, ...] = ()
    gpu_memory_mib: int | None = None
    """Preflight's estimate for each GPU; None where it made none."""
    idempotency_key: str | None = None
    """With `body_hash`: lets an api whose database was restored know a repeated submit again."""
    body_hash: str = ""


class JobCancelRequested(RequestBase):
    """Stop it for good."""

    type: Literal["request.job.cancel.v1"] = "request.job.cancel.v1"


class JobPauseRequested(RequestBase):
    """Save a checkpoint, free the GPUs, wait for resume."""

    type: Literal["request.job.pause.v1"] = "request.job.pause.v1"


class JobResumeRequested(RequestBase):
    """Go on from the newest checkpoint."""

    type: Literal["request.job.resume.v1"] = "request.job.resume.v1"


class JobRetryRequested(RequestBase):
    """Reopen a failed or cancelled job as a new attempt."""

    type: Literal["request.job.retry.v1"] = "request.job.retry.v1"


class JobPriorityRequested(RequestBase):
    """Change the place in the queue of a job that waits."""

    type: Literal["request.job.priority.v1"] = "request.job.priority.v1"
    priority: int


class JobSecretsRequested(RequestBase):
    """The names of the secrets that a job has from now on; attempts that start later fetch the values."""

    type: Literal["request.job.secrets.v1"] = "request.job.secrets.v1"
    secret_names: tuple[str, ...]


class JobDeclareLostRequested(RequestBase):
    """The user says that the silent host will not come back: requeue the job."""

    type: Literal["request.job.declare_lost.v1"] = "request.job.declare_lost.v1"


class JobDeleteRequested(RequestBase):
    """Leave a tombstone and collect the files."""

    type: Literal["request.job.delete.v1"] = "request.job.delete.v1"


class HostDrainRequested(EventBase):
    """Start nothing new on a host; `stop_jobs` also moves what runs there."""

    type: Literal["request.host.drain.v1"] = "request.host.drain.v1"
    host: str
    req_n: int
    at: datetime
    drained: bool
    stop_jobs: bool = False


class HostForgetRequested(EventBase):
    """Remove a host that will not come back."""

    type: Literal["request.host.forget.v1"] = "request.host.forget.v1"
    host: str
    req_n: int
    at: datetime


JobRequest = (
    JobSubmitRequested
    | JobCancelRequested
    | JobPauseRequested
    | JobResumeRequested
    | JobRetryRequested
    | JobPriorityRequested
    | JobSecretsRequested
    | JobDeclareLostRequested
    | JobDeleteRequested
)
HostRequest = HostDrainRequested | HostForgetRequested
