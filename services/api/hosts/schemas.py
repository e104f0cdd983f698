"""The public shapes of hosts."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from services.api.jobs.schemas import Time
from shared.specs.text import HostName


class HostJob(BaseModel):
    """A job that holds GPUs of a host."""

    uuid: str
    name: str | None
    status: str | None


class HostRead(BaseModel):
    """One host: what it has, what runs there."""

    id: str
    label: str
    online: bool
    drained: bool
    last_seen: Time | None
    joined_at: Time | None
    agent_version: str | None
    device: str | None
    gpus: list[dict[str, Any]]
    jobs: list[HostJob]
    inventory: dict[str, Any] | None


class HostPage(BaseModel):
    """All hosts that were not forgotten."""

    items: list[HostRead]


class DrainBody(BaseModel):
    """How to drain."""

    model_config = ConfigDict(extra="forbid", strict=True)

    stop_jobs: bool = False
    """Also stop what runs there, with a checkpoint, so that it goes on where that can be read."""


class JoinCode(BaseModel):
    """A one-time code; it is shown once and kept as a hash."""

    code: str
    expires_at: Time
    command: str
    """What to run on the host."""


class JoinBody(BaseModel):
    """What a joining host sends."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    code: Annotated[str, StringConstraints(min_length=8, max_length=64)]
    public_key: Annotated[str, StringConstraints(pattern=r"^U[A-Z2-7]{55}$")]
    """An nkey user public key; the seed never leaves the host."""
    label: HostName = Field(default="host")


class JoinReply(BaseModel):
    """How the host gets onto the bus."""

    host_id: str
    nats_url: str
    restrict_paths: bool
    """The api is bound beyond loopback: jobs may read only what TRAINYARD_DATA_ROOTS names on that host."""
    inbox_prefix: str
