"""Frames of the live feed, made from the rows that the telemetry database stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite, isnan
from typing import Any

import numpy as np
import orjson
from sqlalchemy import RowMapping, func, select
from sqlmodel import Session

from services.api.telemetry import tables
from services.api.telemetry.chunks import floats, integers
from services.api.telemetry.records import LEVEL_NAMES, nonfinite_name, step_number, unpacked
from shared.clock import iso
from shared.jobs.lifecycle import JobState
from shared.jobs.reasons import REASONS, Lang


@dataclass(slots=True)
class Frame:
    """One message of `WS …/live`; encoded once per language however many clients read it."""

    seq: int
    type: str
    time: float
    data: dict[str, Any]
    ends: bool = False
    """The terminal status of a job that no retry has reopened."""
    _encoded: dict[Lang, str] = field(default_factory=dict)

    def text(self, lang: Lang) -> str:
        """Return the JSON text for one client."""
        text = self._encoded.get(lang)
        if text is None:
            text = self._encoded[lang] = orjson.dumps(self.as_json(lang)).decode()
        return text

    def as_json(self, lang: Lang) -> dict[str, Any]:
        """Return PRODUCT section 10's shape; status sentences in one language."""
        data = self.data
        if self.type == "status":
            data = status_data(JobState.model_validate(data), lang)
        return {"seq": self.seq, "type": self.type, "time": moment(self.time), "data": data}


def moment(seconds: float) -> str:
    """Return seconds since the epoch as the system's time text."""
    return iso(datetime.fromtimestamp(seconds, UTC))


def status_data(state: JobState, lang: Lang) -> dict[str, Any]:
    """Return what a status frame says, with the reason in words."""
    reason = REASONS[state.reason] if state.reason else None
    if state.message is not None:
        message: str | None = getattr(state.message, lang)
    else:
        message = reason.sentence(lang) if reason else None
    return {
        "status": state.status.value,
        "reason": state.reason.value if state.reason else None,
        "message": message,
        "hint": reason.hint(lang) if reason else None,
        "waiting_for": getattr(state.waiting_for, lang) if state.waiting_for else None,
        "attempt": state.attempt,
        "host": state.host,
        "gpus": list(state.gpus),
        "checkpoint_dir": state.checkpoint_dir,
        "stop_requested": state.stop_requested,
        "final_metrics": state.final_metrics,
        "deleted": state.deleted,
        "started_at": iso(state.started_at) if state.started_at else None,
        "finished_at": iso(state.finished_at) if state.finished_at else None,
    }


def frame_of_record(row: Mapping[str, Any] | RowMapping) -> Frame:
    """Make the frame of one row of `record`."""
    body: dict[str, Any] = orjson.loads(row["body"]) if row["body"] else {}
    kind: str = row["type"]
    if kind == "log":
        data: dict[str, Any] = {
            "attempt": row["attempt"],
            "level": LEVEL_NAMES.get(row["level"], "INFO"),
            "message": row["text"],
            **body,
        }
    elif kind in ("status", "gap"):
        data = body
    else:
        data = {"attempt": row["attempt"], **body}
    if kind == "checkpoint":
        data["created_at"] = moment(row["time"])
    return Frame(row["seq"], kind, row["time"], data)


def frame_of_line(row: Mapping[str, Any] | RowMapping) -> Frame:
    """Make the frame of one row of `metric_line`."""
    values = {name: unpacked(value) for name, value in orjson.loads(row["body"]).items()}
    return metric_frame(row["seq"], row["attempt"], row["step"], row["epoch"], row["time"], values)


def metric_frame(
    seq: int,
    attempt: int,
    step: float,
    epoch: float | None,
    time: float,
    values: Mapping[str, float],
) -> Frame:
    """Make a metric frame; a value that is not finite is null and named in `nonfinite`."""
    metrics: dict[str, float | None] = {}
    nonfinite: dict[str, str] = {}
    for name, value in values.items():
        if isfinite(value):
            metrics[name] = value
        else:
            metrics[name] = None
            nonfinite[name] = nonfinite_name(value)
    data: dict[str, Any] = {
        "attempt": attempt,
        "step": step_number(step),
        "epoch": epoch,
        "metrics": metrics,
    }
    if nonfinite:
        data["nonfinite"] = nonfinite
    return Frame(seq, "metric", time, data)


def read_frames(session: Session, job_id: int, after: int, upto: int) -> list[Frame]:
    """Make the frames numbered after + 1 … upto again, in order.

    Numbers are dense but for progress frames pruned long after a newer one replaced them, so a window of
    numbers bounds the work. The open tail is read before the chunks: lines sealed in between are then seen
    twice and never missed.
    """
    record, line = tables.record.c, tables.metric_line.c
    records = session.execute(
        select(tables.record).where(record.job_id == job_id, record.seq > after, record.seq <= upto)
    ).mappings()
    frames = {row["seq"]: frame_of_record(row) for row in records}
    lines = session.execute(
        select(tables.metric_line).where(line.job_id == job_id, line.seq > after, line.seq <= upto)
    ).mappings()
    frames |= {row["seq"]: frame_of_line(row) for row in lines}
    frames |= _sealed(session, job_id, after, upto)
    return [frames[seq] for seq in sorted(frames)]


def next_frame(session: Session, job_id: int, after: int) -> int | None:
    """Return the number of the next frame above `after`, or None where there is none."""
    record, line, chunk = tables.record.c, tables.metric_line.c, tables.metric_chunk.c
    found = [
        session.execute(
            select(func.min(c.seq)).where(c.job_id == job_id, c.seq > after)
        ).scalar_one_or_none()
        for c in (record, line)
    ]
    sealed = (
        select(chunk.seq)
        .where(chunk.job_id == job_id, chunk.last_seq > after)
        .order_by(chunk.last_seq)
        .limit(1)
    )
    first = select(func.min(chunk.first_seq)).where(chunk.job_id == job_id, chunk.first_seq > after)
    found.append(session.execute(first).scalar_one_or_none())
    for blob in session.execute(sealed).scalars():
        numbers = integers(blob)
        found.append(int(numbers[int(np.searchsorted(numbers, after, side="right"))]))
    return min((seq for seq in found if seq is not None), default=None)


def _sealed(session: Session, job_id: int, after: int, upto: int) -> dict[int, Frame]:
    """Join the series of sealed lines by frame number."""
    c = tables.metric_chunk.c
    chunks = session.execute(
        select(c.name, c.attempt, c.seq, c.step, c.value, c.epoch, c.time).where(
            c.job_id == job_id, c.last_seq > after, c.first_seq <= upto
        )
    ).all()
    lines: dict[int, tuple[int, float, float, float]] = {}
    values: dict[int, dict[str, float]] = {}
    for chunk in chunks:
        seqs = integers(chunk.seq)
        low, high = (int(i) for i in np.searchsorted(seqs, [after, upto], side="right"))
        numbers = seqs[low:high].tolist()
        columns = (chunk.step, chunk.epoch, chunk.time, chunk.value)
        parts = (floats(blob)[low:high].tolist() for blob in columns)
        for seq, step, epoch, time, value in zip(numbers, *parts, strict=True):
            lines[seq] = (chunk.attempt, step, epoch, time)
            values.setdefault(seq, {})[chunk.name] = value
    return {
        seq: metric_frame(seq, attempt, step, None if isnan(epoch) else epoch, time, values[seq])
        for seq, (attempt, step, epoch, time) in lines.items()
    }
