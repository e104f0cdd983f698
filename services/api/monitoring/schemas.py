"""Answers of the monitoring routes, for OpenAPI; PRODUCT section 10 fixes the shapes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class AttemptSpan(BaseModel):
    """The part of a chart for which one attempt is the newest."""

    model_config = ConfigDict(populate_by_name=True)

    attempt: int
    start: float = Field(alias="from", description="First x of this attempt's points.")
    stop: float = Field(alias="to", description="Last x of this attempt's points.")
    points: int


class MetricsRead(BaseModel):
    """Columnar metrics: `series[name][i]` belongs to `x[i]`, null where that series has no point there."""

    x: list[float]
    series: dict[str, list[float | None]]
    nonfinite: dict[str, dict[str, str]] = Field(
        description="By metric: index into x → `nan`, `inf` or `-inf`; the value there is null."
    )
    attempts: list[AttemptSpan]
    raw_count: int = Field(description="Points in the range before downsampling, over all series.")
    downsampled: bool
    last_seq: int = Field(description="Newest frame number of the job; use it as `since`.")


class LogLine(BaseModel):
    """One line; `gap` tells how much the host had to drop before it."""

    seq: int
    time: str
    level: str
    message: str
    attempt: int | None
    gap: dict[str, Any] | None = None


class LogPage(BaseModel):
    """A window of the log, oldest line first."""

    items: list[LogLine]
    next: int | None = Field(
        description="Pass as `after` for the lines that follow; null at the end."
    )
    previous: int | None = Field(
        description="Pass as `before` for the lines above; null at the start."
    )
    last_seq: int


class SampleRead(BaseModel):
    """One completion, and what it was worth: `reward` is null where there was no verdict."""

    model_config = ConfigDict(extra="allow")

    seq: int
    time: str
    attempt: int | None = None
    step: float | None = None
    prompt: str | None = None
    completion: str | None = None
    reward: float | None = None
    components: dict[str, float | None] = {}
    advantage: float | None = None
    truncated: bool = False
    reference: str | None = Field(None, description="The answer expected, where there is one.")


class SamplePage(BaseModel):
    """Sample completions with their rewards."""

    items: list[SampleRead]
    next: int | None = Field(
        description="Pass as `after`, with the same sort and filter, for the next page; null at the end."
    )
    last_seq: int


class GpuSeries(BaseModel):
    """One GPU over time."""

    index: int
    utilization: list[float | None]
    memory_used_mib: list[float | None]
    memory_mib: list[float | None]


class SystemRead(BaseModel):
    """GPU, CPU and memory of the host while the job ran; columns belong to `time` (seconds since the epoch)."""

    time: list[float]
    attempt: list[int | None]
    gpus: list[GpuSeries]
    cpu_percent: list[float | None]
    rss_mib: list[float | None]
    raw_count: int
    downsampled: bool
    last_seq: int
