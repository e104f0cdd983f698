"""What a trainer may say and ask while it runs: events to `events.jsonl`, lines to stdout, and whether to stop."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from services.gpu_agent.checkpoint_store import Checkpoint, folder_name
from services.gpu_agent.trainers import ranks
from shared.disk.reserve import NO_ROOM
from shared.log import redact
from shared.runs import STOP_FILE, RunSpec, StopCause

Phase = Literal["loading_model", "tokenizing", "training", "evaluating", "saving"]

_STOP_CAUSES: dict[str, StopCause] = {
    "pause": "pause",
    "cancel": "cancel",
    "drain": "drain",
    "requeue": "requeue",
}
_MIN_SECRET = 4
"""Shorter values are not replaced: they would blank out ordinary words."""


class StopAsked(Exception):
    """Raised where work in progress gives way to a stop that someone asked for."""


class EventWriter:
    """Appends whole JSON lines, one `write` each, so that a reader never sees two lines mixed.

    Of several ranks the first one writes for all; what the others say here is dropped.
    """

    def __init__(self, path: Path) -> None:
        target = path if ranks.is_first() else Path(os.devnull)
        self._descriptor = os.open(
            target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record. Raises OSError where the disk is full; a torn line is then at the very end."""
        line = (
            json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
            + b"\n"
        )
        written = os.write(self._descriptor, line)
        while written < len(line):
            written += os.write(self._descriptor, line[written:])

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class StopFlag:
    """Set by SIGTERM; the mode stands in `stop.json`, which the agent writes before it sends the signal.

    One of several ranks hears of it from its launcher, by another signal.
    """

    def __init__(self, attempt_dir: Path) -> None:
        self._path = attempt_dir / STOP_FILE
        self.asked = False
        self._signal = signal.SIGTERM if ranks.count() == 1 else ranks.STOP_SIGNAL
        self._previous: Any = None

    def install(self) -> None:
        """Take over the signal; only the main thread may. A rank may have been asked before it could listen."""
        self._previous = signal.signal(self._signal, self._on_signal)
        self.asked = self.asked or (ranks.count() > 1 and self._path.exists())

    def restore(self) -> None:
        """Give the signal back to whoever had it."""
        signal.signal(self._signal, self._previous or signal.SIG_DFL)

    def cause(self) -> StopCause | None:
        """Return why, or None when the signal came without a word from the agent."""
        try:
            return _STOP_CAUSES.get(str(json.loads(self._path.read_bytes()).get("mode")))
        except (OSError, ValueError, AttributeError):
            return None

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion of the model and how it was judged; `reward` None stands for no verdict."""

    prompt: str
    completion: str
    reward: float | None = None
    components: dict[str, float] = field(default_factory=dict)
    advantage: float | None = None
    truncated: bool = False
    reference: str | None = None


@dataclass
class TrainContext:
    """One attempt as its trainer sees it."""

    spec: RunSpec
    events: EventWriter
    stop: StopFlag
    secrets: tuple[str, ...] = ()
    named_secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The same by name, for those who must show one: to the reward service, or to a judge."""
    step: int = 0
    total_steps: int = 0
    last_checkpoint: Path | None = None
    latest: dict[str, float] = field(default_factory=dict)
    """Newest value of every metric, also of those that are not finite."""
    evaluated_at: int | None = None
    stop_cause: StopCause | None = None
    stop_message: tuple[str, str] | None = None
    """What the user is told (en, zh) where the run ends itself for a cause that needs words."""

    def should_stop(self) -> bool:
        """Tell whether someone outside asked this run to stop."""
        return self.stop.asked

    def give_way(self) -> None:
        """Raise StopAsked if a stop was asked for. With several ranks all of them must call it, in the same places."""
        (asked,) = ranks.agree(self.stop.asked)
        if asked:
            self.stop.asked = True
            raise StopAsked

    def metric(self, step: int, epoch: float | None, metrics: Mapping[str, float]) -> None:
        """Record metrics of one step; NaN and infinity are kept by name."""
        self.latest.update(metrics)
        if any(name.startswith("eval_") for name in metrics):
            self.evaluated_at = step
        finite, nonfinite = split_nonfinite(metrics)
        record: dict[str, Any] = {
            "t": time.time(),
            "type": "metric",
            "step": step,
            "epoch": epoch,
            "metrics": finite,
        }
        if nonfinite:
            record["nonfinite"] = nonfinite
        self.events.write(record)

    def latest_at(self, step: int) -> dict[str, float]:
        """Return the newest metrics, those of an evaluation only if it was made at `step`."""
        return {
            n: v
            for n, v in self.latest.items()
            if self.evaluated_at == step or not n.startswith("eval_")
        }

    def progress(
        self, step: int, total_steps: int, epoch: float | None, eta_seconds: float | None
    ) -> None:
        """Record how far the run is; `eta_seconds` is None while there is too little to judge by."""
        self.step, self.total_steps = step, total_steps
        self.events.write(
            {
                "t": time.time(),
                "type": "progress",
                "step": step,
                "total_steps": total_steps,
                "epoch": epoch,
                "eta_seconds": eta_seconds,
            }
        )

    def phase(self, name: Phase) -> None:
        """Record what the run does now."""
        self.events.write({"t": time.time(), "type": "phase", "name": name})

    def alive(self) -> None:
        """Record that the run waits for someone, with a deadline, and is not stuck: the agent stops what is silent for long."""
        self.events.write({"t": time.time(), "type": "waiting"})

    def checkpoint(self, saved: Checkpoint, *, best: bool, last: bool) -> None:
        """Announce a checkpoint that is complete on disk."""
        self.last_checkpoint = saved.path
        self.events.write(
            {
                "t": time.time(),
                "type": "checkpoint",
                "step": saved.step,
                "kind": saved.kind,
                "path": str(saved.path),
                "size_bytes": saved.size_bytes,
                "manifest_hash": saved.manifest_hash,
                "metrics": dict(saved.metrics),
                "best": best,
                "last": last,
            }
        )
        self.info(f"Checkpoint saved to: {saved.path}")

    def checkpoint_deleted(self, step: int) -> None:
        """Record that retention removed a checkpoint."""
        path = str(self.spec.checkpoint_dir / folder_name(step))
        record = {"t": time.time(), "type": "checkpoint_deleted", "step": step, "path": path}
        self.events.write(record)

    def sample(self, step: int, sample: Sample) -> None:
        """Record one completion of the model."""
        self.events.write({"t": time.time(), "type": "sample", "step": step, **asdict(sample)})

    def info(self, message: str) -> None:
        """Write an `[INFO]` line to the log."""
        write_line("INFO", self.clean(message))

    def warning(self, message: str) -> None:
        """Write a `[WARNING]` line to the log."""
        write_line("WARNING", self.clean(message))

    def error(self, message: str) -> None:
        """Write an `[ERROR]` line to the log; every error carries its remedy."""
        write_line("ERROR", self.clean(message))

    def clean(self, text: str) -> str:
        """Return `text` without any secret of this job."""
        return remove_secrets(text, self.secrets)


def split_nonfinite(metrics: Mapping[str, float]) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return (values with None for what is not finite, names of those values): JSON has no NaN."""
    finite: dict[str, float | None] = {}
    nonfinite: dict[str, str] = {}
    for name, value in metrics.items():
        if math.isfinite(value):
            finite[name] = value
        else:
            finite[name] = None
            nonfinite[name] = "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return finite, nonfinite


def remove_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with the given values, and all that looks like a key, replaced by `***`."""
    for value in secrets:
        if len(value) >= _MIN_SECRET:
            text = text.replace(value, "***")
    return redact(text)


def write_line(level: str, message: str) -> None:
    """Write one line to standard output, unbuffered, in a single call; of several ranks all but the first only complain."""
    if not ranks.is_first():
        if level == "INFO":
            return
        message = f"Rank {ranks.number()}: {message}"
    _LOG.write(f"[{level}] {message}\n".encode(errors="backslashreplace"))


class _Log:
    """Standard output; a line for which the disk has no room is lost, for training must not end for want of it."""

    def __init__(self) -> None:
        self._lost = 0
        self._torn = False

    def write(self, line: bytes) -> None:
        if self._lost:
            line = (
                b"[WARNING] %d lines of the log were lost: the disk was full\n" % self._lost + line
            )
        data = b"\n" + line if self._torn else line
        whole = len(data)
        try:
            while data:
                data = data[os.write(1, data) :]
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._lost += 1
            self._torn = self._torn or len(data) < whole
        else:
            self._lost, self._torn = 0, False


_LOG = _Log()
