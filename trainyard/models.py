"""What the api returns, typed; fields that a newer api adds are kept, not refused."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

TERMINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED"})


class ApiModel(BaseModel):
    """A reply of the api."""

    model_config = ConfigDict(extra="allow")


class Progress(ApiModel):
    """How far a run is; `eta_seconds` is None until it can be told."""

    step: int = 0
    total_steps: int | None = None
    epoch: float | None = None
    eta_seconds: float | None = None


class Job(ApiModel):
    """A job as `GET /api/v1/jobs/{uuid}` returns it."""

    uuid: str
    name: str
    description: str | None = None
    status: str
    reason: str | None = None
    message: str | None = None
    hint: str | None = None
    waiting_for: str | None = None
    algorithm: str
    config: dict[str, Any] = Field(default_factory=dict)
    attempt: int = 0
    host: str | None = None
    gpus: list[int] = Field(default_factory=list)
    depends_on: list[str] = Field(default_factory=list)
    pipeline: str | None = None
    tags: list[str] = Field(default_factory=list)
    progress: Progress | None = None
    latest_metrics: dict[str, Any] | None = None
    final_metrics: dict[str, Any] | None = None
    checkpoint_dir: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def is_terminal(self) -> bool:
        """Tell whether the job has ended."""
        return self.status in TERMINAL


class JobPage(ApiModel):
    """One page of jobs; `next` is the cursor of the following one."""

    items: list[Job]
    next: str | None = None
    counts: dict[str, int] = Field(default_factory=dict)


class Checkpoint(ApiModel):
    """One complete checkpoint."""

    step: int
    kind: str
    path: str
    metrics: dict[str, Any] = Field(default_factory=dict)
    size_bytes: int = 0
    best: bool = False
    last: bool = False
    created_at: datetime | None = None
    host: str | None = None


class Metrics(ApiModel):
    """Columnar series: `series[name][i]` belongs to `x[i]`, None where a series has no point there."""

    x: list[float | None]
    series: dict[str, list[float | None]]
    attempts: list[Any] = Field(default_factory=list)
    raw_count: int = 0
    downsampled: bool = False
    last_seq: int = 0


class Host(ApiModel):
    """A training host as `GET /api/v1/hosts/` lists it."""

    id: str
    label: str
    online: bool
    drained: bool = False


class Frame(ApiModel):
    """One frame of the live WebSocket."""

    seq: int
    type: str
    time: str | None = None
    data: dict[str, Any] = Field(default_factory=dict)
