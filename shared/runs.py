"""Files between agent and trainer of one attempt: the run's spec, its result, and how small JSON files are written."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.disk.levels import Shortage
from shared.disk.reserve import NO_ROOM, write_in_room
from shared.jobs.reasons import Reason

SPEC_FILE = "spec.json"
EVENTS_FILE = "events.jsonl"
RESULT_FILE = "result.json"
STOP_FILE = "stop.json"
REWARD_TOKEN = "TRAINYARD_REWARD_TOKEN"
"""Among a trainer's secrets: the bearer token of the central reward service, where it asks for one."""
MOST_HALVINGS = 16

Outcome = Literal["completed", "stopped", "failed"]
StopCause = Literal[
    "stop_metric",
    "early_stopping",
    "time_limit",
    "reward_unavailable",
    "pause",
    "cancel",
    "drain",
    "requeue",
]


class GpuRef(BaseModel):
    """A GPU (or CPU slot) that the attempt holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    index: int
    uuid: str = ""


class RunSpec(BaseModel):
    """`attempts/<n>/spec.json`: everything a trainer needs to know; it holds no secret."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    job: str
    attempt: int = Field(ge=1)
    algorithm: str
    config: dict[str, Any] = Field(default_factory=dict)
    """The job's parameters, flat and resolved, as PRODUCT section 2 names them."""
    model_path: str
    """A local folder or a Hugging Face id; `job:` and `stage:` are resolved before this point."""
    train_data_path: str
    eval_data_path: str | None = None
    checkpoint_dir: Path
    work_dir: Path
    attempt_dir: Path
    resume_from: Path | None = None
    """A complete checkpoint folder of the same job, or None for a start from the model."""
    device: Literal["cpu", "cuda"] = "cpu"
    gpus: tuple[GpuRef, ...] = ()
    threads: int = Field(default=1, ge=1)
    model_paths: dict[str, str] = Field(default_factory=dict)
    """Every other model parameter by its place (`ref_model_path`, `rewards.0.reward_model_path`), resolved on this host."""
    rules_file: Path | None = None
    """Where the reward service of this host writes its address; read again when it does not answer: it may have moved."""
    reward_url: str | None = None
    """The central reward service, for judges."""
    oom_halvings: int = Field(default=0, ge=0, le=MOST_HALVINGS)
    """How often the micro batch is halved, since attempts before this one ran out of memory."""


class RunResult(BaseModel):
    """`attempts/<n>/result.json`: how the attempt ended, in the trainer's own words."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    outcome: Outcome
    reason: Reason | None = None
    stop_cause: StopCause | None = None
    message: str | None = None
    message_zh: str | None = None
    shortage: Shortage | None = None
    """What lacked room, with the reason `disk_full`."""
    error_type: str | None = None
    traceback: str | None = None
    """The last lines only, secrets removed."""
    step: int = 0
    total_steps: int = 0
    final_metrics: dict[str, float | None] = Field(default_factory=dict)
    """A value that is not finite is null."""
    last_checkpoint: Path | None = None


def write_atomic_json(path: Path, document: Any) -> None:
    """Replace `path` by `document` as JSON: after a crash the old file or the new one is there, never a part.

    `document` is a pydantic model or plain data. On a full disk the room that was set aside for `path` is used. Raises OSError where the disk refuses, ValueError for NaN or infinity.
    """
    data = document.model_dump(mode="json") if isinstance(document, BaseModel) else document
    body = json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        full = isinstance(error, OSError) and error.errno in NO_ROOM
        if not (full and write_in_room(path, body)):
            raise
    fsync_directory(path.parent)


def fsync_directory(folder: Path) -> None:
    """Make the names in `folder` durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
