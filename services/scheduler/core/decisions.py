"""What a step decides, as data for the shell to store in one transaction and carry out afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from services.scheduler.core.state import Checkpoint, Host, Job
from shared.events.requests import JobRequest
from shared.jobs.lifecycle import Change, JobState


@dataclass(frozen=True, slots=True)
class Published:
    """One `job.<verb>` event, in the order of decision."""

    change: Change
    at: datetime
    state: JobState


@dataclass(frozen=True, slots=True)
class JobSaved:
    """The job as it stands at the end of the step; one per job."""

    job: Job


@dataclass(frozen=True, slots=True)
class ConfigSaved:
    """The configuration of a submitted job, which decisions never read again."""

    job: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AttemptSaved:
    """An attempt began, moved on or was closed."""

    job: str
    attempt: int
    host: str
    gpus: tuple[int, ...]
    status: str
    """`assigned`, `accepted`, `started`, `ended`, `refused` or `fenced`."""
    at: datetime
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """A checkpoint of a job, new, changed or deleted."""

    job: str
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class DesiredSet:
    """What a host is to do about a job; the shell adds the job's configuration for `run`."""

    host: str
    job: str
    attempt: int
    desired: str
    """`run`, `pause`, `stop` or `collect`."""
    stop_mode: str | None = None
    model_path: str | None = None
    resolved: Mapping[str, str] = field(default_factory=dict)
    """Other parameters that named a job's checkpoint, and its folder."""
    oom_halvings: int = 0
    resume: bool = False
    checkpoints: tuple[int, ...] = ()
    """Steps of the job's checkpoints that this host can read."""
    gpus: tuple[int, ...] = ()
    gpu_uuids: tuple[str, ...] = ()
    secret_names: tuple[str, ...] = ()
    disconnect_policy: str = "keep"
    stop_after_seconds: float = 600.0
    kill_grace_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class DesiredCleared:
    """A host has nothing more to do about a job."""

    host: str
    job: str


@dataclass(frozen=True, slots=True)
class HostSaved:
    """The host as it stands at the end of the step; one per host."""

    host: Host


@dataclass(frozen=True, slots=True)
class RequestHeld:
    """A request that must wait for an earlier one of the same job."""

    request: JobRequest


@dataclass(frozen=True, slots=True)
class RequestReleased:
    """A held request was applied, or proved to be a repetition."""

    job: str
    req_n: int


@dataclass(frozen=True, slots=True)
class Counted:
    """Something refused or repeated: for the log and the counters, never stored."""

    name: str
    detail: Mapping[str, Any] = field(default_factory=dict)


Decision = (
    Published
    | JobSaved
    | ConfigSaved
    | AttemptSaved
    | CheckpointSaved
    | DesiredSet
    | DesiredCleared
    | HostSaved
    | RequestHeld
    | RequestReleased
    | Counted
)
