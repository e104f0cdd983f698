"""Facts of one host: `run.`, `met.`, `log.`, `smp.` + `<host>.<job>.<attempt>`, written by that host's agent alone.

Host, job and attempt are read from the subject, never from a payload.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from shared.disk.levels import Shortage
from shared.events.base import EventBase
from shared.jobs.reasons import Reason

Kind = Literal["run", "met", "log", "smp", "sys"]
KINDS: tuple[Kind, ...] = ("run", "met", "log", "smp", "sys")
"""Each kind of (job, attempt) has its own dense sequence from 1. `sys` travels on the subject `met.…`."""


class RunFactBase(EventBase):
    """One line of `facts.jsonl`; `seq` is its number."""

    seq: int
    t: float
    """Seconds since the epoch on the host's clock; for people, never for decisions."""


class RunAccepted(RunFactBase):
    """The agent has the spec on disk and has taken the GPUs."""

    type: Literal["run.accepted.v1"] = "run.accepted.v1"
    gpus: tuple[int, ...] = ()


class RunRefused(RunFactBase):
    """The host has the last word: this attempt never started and never will."""

    type: Literal["run.refused.v1"] = "run.refused.v1"
    reason: Reason
    message_en: str = ""
    message_zh: str = ""
    shortage: Shortage | None = None
    """What lacked room, with the reason `disk_full`."""


class RunStarted(RunFactBase):
    """The trainer process exists."""

    type: Literal["run.started.v1"] = "run.started.v1"
    pid: int
    boot_id: str
    warm: bool
    """Forked from the zygote rather than started cold."""
    resume_step: int | None = None


class RunCheckpoint(RunFactBase):
    """A checkpoint is complete on disk, or was deleted by the retention rule."""

    type: Literal["run.checkpoint.v1"] = "run.checkpoint.v1"
    step: int
    kind: Literal["full", "lora"] = "full"
    path: str
    size_bytes: int = 0
    manifest_hash: str = ""
    metrics: dict[str, float | None] = Field(default_factory=dict)
    best: bool = False
    last: bool = False
    deleted: bool = False


class RunExited(RunFactBase):
    """The run is over and nothing of it is left; always the last fact of an attempt."""

    type: Literal["run.exited.v1"] = "run.exited.v1"
    outcome: Literal["completed", "stopped", "failed"]
    reason: Reason | None = None
    message_en: str = ""
    message_zh: str = ""
    shortage: Shortage | None = None
    """What lacked room, with the reason `disk_full`."""
    stop_cause: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    step: int | None = None
    total_steps: int | None = None
    final_metrics: dict[str, float | None] = Field(default_factory=dict)
    last_seq: dict[str, int] = Field(default_factory=dict)
    """Last sequence number of every kind; readers wait for them before the terminal frame."""
    leftovers: int = 0
    """Processes that survived SIGKILL; above 0 the agent drains itself."""


class RunCollected(RunFactBase):
    """The files of a deleted job are gone."""

    type: Literal["run.collected.v1"] = "run.collected.v1"


RunFact = RunAccepted | RunRefused | RunStarted | RunCheckpoint | RunExited | RunCollected


class BatchBase(EventBase):
    """`items[i]` has the sequence number `first_seq + i`."""

    first_seq: int
    items: tuple[dict[str, Any], ...]


class MetricsBatch(BatchBase):
    """Lines of `events.jsonl`: metric, progress and phase records.

    metric: {"t", "type": "metric", "step", "epoch", "metrics": {name: number | null}, "nonfinite": {name: "nan" | "inf" | "-inf"}}
    progress: {"t", "type": "progress", "step", "total_steps", "epoch", "eta_seconds"}; phase: {"t", "type": "phase", "name"}.
    """

    type: Literal["run.metrics.v1"] = "run.metrics.v1"


class SystemBatch(BatchBase):
    """Samples of GPU, memory and CPU, every 5 s: {"t", "gpus": [{"index", "utilization", "memory_used_mib", "memory_mib"}], "cpu_percent", "rss_mib"}."""

    type: Literal["run.system.v1"] = "run.system.v1"


class LogBatch(BatchBase):
    """Lines of `train.log`: {"t", "level": "DEBUG" | "INFO" | "WARNING" | "ERROR", "message"}; a gap is {"t", "level": "WARNING", "message", "gap": {"lines", "bytes"}}."""

    type: Literal["run.logs.v1"] = "run.logs.v1"


class SampleBatch(BatchBase):
    """Sample completions: {"t", "step", "prompt", "completion", "reward", "components", "advantage", "truncated"}."""

    type: Literal["run.samples.v1"] = "run.samples.v1"


Batch = MetricsBatch | SystemBatch | LogBatch | SampleBatch
BATCH_KIND: dict[str, Kind] = {
    "run.metrics.v1": "met",
    "run.system.v1": "sys",
    "run.logs.v1": "log",
    "run.samples.v1": "smp",
}
