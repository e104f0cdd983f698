"""The public shapes of jobs, PRODUCT section 10."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
)

from shared.clock import iso
from shared.specs.text import Block, NewName, Tags

Time = Annotated[datetime, PlainSerializer(iso, return_type=str, when_used="json")]
Problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def whole(value: object) -> object:
    """Return 5 for 5.0: JSON knows no difference."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Progress(BaseModel):
    """How far the run is."""

    step: int | None
    total_steps: int | None
    epoch: float | None
    eta_seconds: float | None


class JobRead(BaseModel):
    """A job as REST returns it."""

    uuid: str
    name: str
    description: str | None
    status: str
    reason: str | None
    message: str | None
    hint: str | None
    waiting_for: str | None
    algorithm: str
    config: dict[str, Any]
    attempt: int
    host: str | None
    gpus: list[int]
    depends_on: list[str]
    pipeline: str | None
    tags: list[str]
    progress: Progress | None
    latest_metrics: dict[str, Any]
    final_metrics: dict[str, Any] | None
    checkpoint_dir: str | None
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    priority: int
    stop_requested: str | None
    """`cancel`, `pause` or `drain` while it is on its way."""


class JobPage(BaseModel):
    """One page; `next` is null on the last. `counts` are by status over the same filter, whatever `status` is asked."""

    items: list[JobRead]
    next: str | None
    counts: dict[str, int]


class Warn(BaseModel):
    """Something allowed that is probably not meant."""

    field: str | None
    code: str
    message: str


class ValidateReply(BaseModel):
    """What submitting this body would store, and what an experienced colleague would remark."""

    valid: bool
    config: dict[str, Any]
    secrets: list[str]
    warnings: list[Warn]
    estimates: dict[str, int | None]


class JobPatch(BaseModel):
    """What can change after submitting."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: NewName | None = None
    description: Block | None = None
    tags: Tags | None = None
    priority: Annotated[int, Field(ge=0, le=100), BeforeValidator(whole)] | None = None


class JobEventRead(BaseModel):
    """One entry of a job's history."""

    n: int
    type: str
    time: Time
    status: str
    reason: str | None
    message: str | None
    hint: str | None
    attempt: int
    host: str | None


class SecretValue(BaseModel):
    """A value to store; it never comes back."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    value: Annotated[
        str,
        StringConstraints(min_length=1, max_length=16384),
        Field(json_schema_extra={"pattern": r"^[^\u0000]*$"}),
    ]


class SecretRead(BaseModel):
    """That a secret is there, not what it is."""

    name: str
    last4: str
    created_at: Time
