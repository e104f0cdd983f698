"""Sealed metrics: the open tail of a job becomes float64 arrays, one chunk a series and attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from sqlalchemy import RowMapping, delete, insert, select, update
from sqlmodel import Session

from services.api.telemetry import tables
from services.api.telemetry.records import NONFINITE

CHUNK_POINTS = 4096
TAIL_LINES = 4096
TAIL_POINTS = 262_144
"""A tail of very many series is sealed earlier, so that a chart never parses more than this from JSON."""
TAIL_LINES_MIN = 64
ARRAYS = ("step", "value", "seq", "epoch", "time")
_COLUMNS = itemgetter("step", "seq", "attempt", "epoch", "time", "body")
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
    places: dict[tuple[str, int], list[int]] = {}
    values: dict[tuple[str, int], list[float]] = {}
    columns: list[tuple[float, int, float | None, float]] = []
    for place, (step, seq, attempt, epoch, time, body) in enumerate(map(_COLUMNS, lines)):
        columns.append((step, seq, epoch, time))
        for name, value in orjson.loads(body).items():
            if names is None or name in names:
                key = (name, attempt)
                if key not in places:
                    places[key], values[key] = [], []
                places[key].append(place)
                values[key].append(NONFINITE[value] if isinstance(value, str) else value)
    if not places:
        return {}
    # What the series of a line have in common is turned into arrays once, not once a series.
    steps, seqs, epochs, times = zip(*columns, strict=True)
    step_of, time_of = np.array(steps, dtype=np.float64), np.array(times, dtype=np.float64)
    seq_of, epoch_of = np.array(seqs, dtype=np.int64), np.array(epochs, dtype=np.float64)
    found: dict[tuple[str, int], Points] = {}
    for key, at in places.items():
        value_of = np.array(values[key], dtype=np.float64)
        if len(at) == len(columns):
            found[key] = Points(step_of, value_of, seq_of, epoch_of, time_of)
        else:
            found[key] = Points(step_of[at], value_of, seq_of[at], epoch_of[at], time_of[at])
    return found


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
