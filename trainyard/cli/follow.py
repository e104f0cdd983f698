"""Watching a job: a progress bar with ETA on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
from typing import Any, Self

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from trainyard.cli.output import out
from trainyard.client import Client
from trainyard.models import Frame, Job

SHOWN = (
    "loss", "eval_loss", "eval_reward", "eval_accuracy", "reward", "reward_accuracy", "reward_margin", "accuracy", "kl_divergence",
    "tokens_per_second",
)  # fmt: skip
LEVELS = {"DEBUG": 0, "INFO": 1, "WARNING": 2, "ERROR": 3}


def follow(client: Client, uuid: str, *, logs: bool = False, level: str | None = None) -> Job:
    """Show a job until it has ended and return it. Ctrl-C detaches and never stops the job."""
    view = _Bar() if out.is_terminal and not logs else _Lines(logs=logs, level=level)
    try:
        with view:
            for frame in client.jobs.live(uuid):
                view.show(frame)
    except KeyboardInterrupt:
        out.print(f"\nDetached; the job goes on. Come back with: trainyard jobs logs -f {uuid}")
    return client.jobs.get(uuid)


def format_metrics(metrics: dict[str, Any]) -> str:
    """Return `loss=2.345 eval_accuracy=0.25` of the metrics worth a glance."""
    parts = []
    for name in SHOWN:
        value = metrics.get(name)
        if value is not None:
            parts.append(
                f"{name}={value:.0f}" if name == "tokens_per_second" else f"{name}={value:.4g}"
            )
    return " ".join(parts)


class _Lines:
    """One line an event, for pipes and for `logs -f`."""

    def __init__(self, *, logs: bool, level: str | None) -> None:
        self._logs = logs
        self._floor = LEVELS.get((level or "DEBUG").upper(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()

    def show(self, frame: Frame) -> None:
        line = self._log_line(frame) if self._logs else self._event_line(frame)
        if line:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def _log_line(self, frame: Frame) -> str | None:
        if frame.type == "snapshot":
            lines = frame.data.get("logs") or []
            return "\n".join(t for entry in lines if (t := self._entry(entry))) or None
        return self._entry(frame.data) if frame.type == "log" else None

    def _entry(self, entry: dict[str, Any]) -> str | None:
        level = str(entry.get("level", "INFO"))
        if LEVELS.get(level, 1) < self._floor:
            return None
        return f"[{level}] {entry.get('message', '')}"

    def _event_line(self, frame: Frame) -> str | None:
        data = frame.data
        if frame.type == "status":
            reason = f" ({data['reason']})" if data.get("reason") else ""
            return f"status {data.get('status')}{reason}"
        if frame.type == "metric":
            shown = format_metrics(data.get("metrics") or {})
            return f"step {data.get('step')} {shown}" if shown else None
        if frame.type == "checkpoint" and not data.get("deleted"):
            return f"checkpoint step {data.get('step')} {data.get('path')}"
        return None


class _Bar:
    """A rich progress bar."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[status]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[eta]}"),
            TextColumn("{task.fields[metrics]}"),
            console=out,
        )
        self._metrics: dict[str, Any] = {}
        self._task = self._progress.add_task("", total=None, status="PENDING", eta="", metrics="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, frame: Frame) -> None:
        data = frame.data
        if frame.type == "snapshot":
            job = data.get("job") or data
            self._status(job)
            self._steps(job.get("progress") or {})
            self._merge(job.get("latest_metrics") or {})
        elif frame.type == "status":
            self._status(data)
        elif frame.type == "progress":
            self._steps(data)
        elif frame.type == "metric":
            self._merge(data.get("metrics") or {})
        elif frame.type == "log" and data.get("level") in {"WARNING", "ERROR"}:
            self._progress.console.print(f"[{data['level']}] {data.get('message')}", markup=False)

    def _status(self, data: dict[str, Any]) -> None:
        text = str(data.get("status"))
        waits = data.get("waiting_for")
        self._progress.update(self._task, status=escape(f"{text}: {waits}" if waits else text))

    def _steps(self, data: dict[str, Any]) -> None:
        eta = data.get("eta_seconds")
        self._progress.update(
            self._task,
            completed=data.get("step") or 0,
            total=data.get("total_steps"),
            eta="" if eta is None else f"{int(eta) // 60}:{int(eta) % 60:02d} left",
        )

    def _merge(self, metrics: dict[str, Any]) -> None:
        self._metrics |= metrics
        self._progress.update(self._task, metrics=escape(format_metrics(self._metrics)))
