"""Request/reply messages on core NATS: heartbeat, confirmation, secrets, commands to a host."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from shared.events.base import EventBase
from shared.jobs.resources import HostInventory


class RunReport(EventBase):
    """One run as the agent sees it now."""

    job: str
    attempt: int
    alive: bool
    """A lock is held."""
    exited: bool = False


class Heartbeat(EventBase):
    """Agent → scheduler, request on `hb.<host>` every 5 s."""

    instance: str
    """New with each start of the agent; a second instance of a host id is refused."""
    boot_id: str
    began: float = 0.0
    """Seconds after the host's boot at which this instance began; 0 from an agent that does not say so."""
    inventory: HostInventory
    runs: tuple[RunReport, ...] = ()
    unanswered_seconds: float = 0.0
    """How long before this one the last answered heartbeat was sent, or the agent's first one while none was.

    A link that carries one direction only still brings heartbeats; this tells that the answers do not arrive.
    """
    restored: str = ""
    """The restore for which `runs` names every attempt on the disk of the host, ended ones too."""


class HeldRun(EventBase):
    """An attempt that the scheduler counts as a host's."""

    job: str
    attempt: int


class HeartbeatReply(EventBase):
    """Scheduler → agent: the lease, counted by the agent from when it sent the request."""

    ok: bool = True
    error: Literal["identity_in_use", "forgotten"] | None = None
    lease_seconds: float = 30.0
    ctl_epoch: str = ""
    """Epoch for which the scheduler has written all desired states."""
    drained: bool = False
    scheduler_epoch: int = 0
    held: tuple[HeldRun, ...] | None = None
    """Attempts that stay this host's as long as this lease runs; None from a scheduler that does not say so."""
    restored: str = ""
    """Id of the last restore from a backup; another one than before: what was confirmed may be gone, so it is asked again."""


class AttemptCursor(EventBase):
    """Sequence numbers of one attempt, by kind."""

    job: str
    attempt: int
    seq: dict[str, int] = Field(default_factory=dict)


class AckQuery(EventBase):
    """Agent → api, request on `ack.<host>`: asks which of these are stored."""

    attempts: tuple[AttemptCursor, ...]


class AckReply(EventBase):
    """What the api has committed; `refused` lists attempts whose facts it counts but does not store."""

    attempts: tuple[AttemptCursor, ...]
    refused: tuple[AttemptCursor, ...] = ()


class SecretQuery(EventBase):
    """Agent → api, request on `secret.<host>`."""

    job: str
    attempt: int


class SecretReply(EventBase):
    """Granted to the host to which this attempt is assigned; the values go to the trainer by a descriptor."""

    ok: bool
    error: str | None = None
    values: dict[str, str] = Field(default_factory=dict)


class HostCommand(EventBase):
    """api → agent, request on `cmd.<host>.<verb>`; verbs: `read_file`, `list_files`, `check_paths`."""

    job: str | None = None
    args: dict[str, Any] = Field(default_factory=dict)


class HostReply(EventBase):
    """Answer to a HostCommand; bytes travel as base64 in `data`."""

    ok: bool
    error: str | None = None
    message_en: str = ""
    message_zh: str = ""
    result: dict[str, Any] = Field(default_factory=dict)


class ControlEntry(EventBase):
    """Value of the KV key `<host>.<job>` in the bucket `ctl`: the desired state of a run."""

    epoch: str
    job: str
    attempt: int
    desired: Literal["run", "pause", "stop", "collect"]
    stop_mode: str | None = None
    """`cancel`, `pause`, `drain` or `requeue`, written into stop.json."""
    grace_seconds: float = 60.0
    config: dict[str, Any] = Field(default_factory=dict)
    """The job's full flat configuration, for `run`."""
    model_path: str | None = None
    """Frozen model path, where `model_path` named a job or stage."""
    resolved: dict[str, str] = Field(default_factory=dict)
    """Folders of checkpoints that other parameters named, by their place, as they stand in `config`."""
    oom_halvings: int = 0
    """How often the micro batch is halved, since earlier attempts ran out of memory."""
    resume: bool = False
    """Start from the newest readable checkpoint of this job on the host."""
    checkpoints: tuple[int, ...] = ()
    """Steps of which the scheduler believes that the host has a checkpoint; the host says what is otherwise."""
    gpus: tuple[int, ...] = ()
    gpu_uuids: tuple[str, ...] = ()
    secret_names: tuple[str, ...] = ()
    disconnect_policy: str = "keep"
    stop_after_seconds: float = 600.0
    """With `stop_and_requeue`: the shim stops the trainer this long after the last renewed lease."""
    kill_grace_seconds: float = 30.0
    """How long the trainer then has to save; the scheduler reckons with it before it places the job again."""
