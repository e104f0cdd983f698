"""Sealed metrics: the open tail of a job becomes float64 arrays, one chunk a series and attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from sqlalchemy import RowMapping, delete, insert, select, update
from sqlmodel import Session

from services.api.telemetry import tables
from services.api.telemetry.records import unpacked

CHUNK_POINTS = 4096
TAIL_LINES = 4096
TAIL_POINTS = 262_144
"""A tail of very many series is sealed earlier, so that a chart never parses more than this from JSON."""
TAIL_LINES_MIN = 64
ARRAYS = ("step", "value", "seq", "epoch", "time")
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def floats(blob: bytes) -> Floats:
    """Read a blob of little-endian float64."""
    return np.frombuffer(blob, dtype="<f8")


def integers(blob: bytes) -> Integers:
    """Read a blob of little-endian int64."""
    return np.frombuffer(blob, dtype="<i8")


@dataclass(frozen=True, slots=True)
class Points:
    """Points of one series in one attempt, in the order in which they were stored."""

    step: Floats
    value: Floats
    seq: Integers
    epoch: Floats
    time: Floats

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.step)

    def part(self, start: int, stop: int) -> Points:
        """Return a range of them."""
        return Points(*(getattr(self, name)[start:stop] for name in ARRAYS))

    @staticmethod
    def of(rows: Mapping[str, Any] | Any) -> Points:
        """Read the blobs of a chunk row."""
        return Points(
            floats(rows["step"]),
            floats(rows["value"]),
            integers(rows["seq"]),
            floats(rows["epoch"]),
            floats(rows["time"]),
        )

    @staticmethod
    def concat(parts: Sequence[Points]) -> Points:
        """Join them in order."""
        return Points(*(np.concatenate([getattr(p, n) for p in parts]) for n in ARRAYS))


def tail_is_full(lines: int, points: int) -> bool:
    """Tell whether an open tail should be sealed."""
    return lines >= TAIL_LINES or (points >= TAIL_POINTS and lines >= TAIL_LINES_MIN)


def series_of_lines(
    lines: Iterable[RowMapping], names: frozenset[str] | None = None
) -> dict[tuple[str, int], Points]:
    """Turn rows of `metric_line`, in order of seq, into points by (name, attempt)."""
    nan = float("nan")
    found: dict[tuple[str, int], list[tuple[float, float, int, float, float]]] = {}
    for line in lines:
        step, seq, attempt, time = line["step"], line["seq"], line["attempt"], line["time"]
        epoch = nan if line["epoch"] is None else line["epoch"]
        for name, value in orjson.loads(line["body"]).items():
            if names is None or name in names:
                point = (step, unpacked(value), seq, epoch, time)
                found.setdefault((name, attempt), []).append(point)
    return {key: _points(rows) for key, rows in found.items()}


def _points(rows: list[tuple[float, float, int, float, float]]) -> Points:
    step, value, seq, epoch, time = zip(*rows, strict=True)
    return Points(
        np.array(step, dtype=np.float64),
        np.array(value, dtype=np.float64),
        np.array(seq, dtype=np.int64),
        np.array(epoch, dtype=np.float64),
        np.array(time, dtype=np.float64),
    )


def seal(session: Session, job_id: int) -> int:
    """Move a job's open tail into chunks; return how many lines it had.

    A series that is logged rarely fills its last chunk up to CHUNK_POINTS before a new one is begun.
    """
    line = tables.metric_line.c
    lines = (
        session.execute(select(tables.metric_line).where(line.job_id == job_id).order_by(line.seq))
        .mappings()
        .all()
    )
    if not lines:
        return 0
    fresh: list[dict[str, Any]] = []
    for (name, attempt), points in series_of_lines(lines).items():
        last = _open_chunk(session, job_id, name, attempt)
        if last is not None:
            points = Points.concat([Points.of(last), points])  # noqa: PLW2901
            head = points.part(0, CHUNK_POINTS)
            session.execute(
                update(tables.metric_chunk)
                .where(tables.metric_chunk.c.id == last["id"])
                .values(**chunk_row(job_id, name, attempt, head))
            )
            points = points.part(CHUNK_POINTS, len(points))  # noqa: PLW2901
        for start in range(0, len(points), CHUNK_POINTS):
            part = points.part(start, start + CHUNK_POINTS)
            fresh.append(chunk_row(job_id, name, attempt, part))
    if fresh:
        session.execute(insert(tables.metric_chunk), fresh)
    session.execute(
        delete(tables.metric_line).where(line.job_id == job_id, line.seq <= lines[-1]["seq"])
    )
    session.execute(
        update(tables.job_live)
        .where(tables.job_live.c.id == job_id)
        .values(tail_lines=0, tail_points=0)
    )
    _prune_progress(session, job_id, lines[0]["seq"])
    return len(lines)


def _open_chunk(session: Session, job_id: int, name: str, attempt: int) -> Any | None:
    """Return the chunk of a series that still has room."""
    c = tables.metric_chunk.c
    return (
        session.execute(
            select(tables.metric_chunk).where(
                c.job_id == job_id,
                c.name == name,
                c.attempt == attempt,
                c.points < CHUNK_POINTS,
            )
        )
        .mappings()
        .first()
    )


def chunk_row(job_id: int, name: str, attempt: int, points: Points) -> dict[str, Any]:
    """Return the row of `metric_chunk` for some points."""
    finite = points.value[np.isfinite(points.value)]
    first, last = float(points.value[0]), float(points.value[-1])
    return {
        "job_id": job_id,
        "name": name,
        "attempt": attempt,
        "points": len(points),
        "first_seq": int(points.seq[0]),
        "last_seq": int(points.seq[-1]),
        "step_min": float(points.step.min()),
        "step_max": float(points.step.max()),
        "value_min": float(finite.min()) if len(finite) else None,
        "value_max": float(finite.max()) if len(finite) else None,
        "value_first": first if np.isfinite(first) else None,
        "value_last": last if np.isfinite(last) else None,
        **{name: getattr(points, name).tobytes() for name in ARRAYS},
    }


def _prune_progress(session: Session, job_id: int, before: int) -> None:
    """Drop progress rows that newer ones replaced long ago; they would otherwise outgrow the metrics."""
    c = tables.record.c
    session.execute(
        delete(tables.record).where(c.job_id == job_id, c.type == "progress", c.seq < before)
    )
