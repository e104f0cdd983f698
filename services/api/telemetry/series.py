"""Charts: the points of a job's metrics in a range, one for each step, downsampled per series."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import orjson
from sqlalchemy import select
from sqlmodel import Session

from services.api.telemetry import tables
from services.api.telemetry.chunks import Floats, floats, series_of_lines
from services.api.telemetry.downsample import pick
from services.api.telemetry.records import nonfinite_name

XAxis = Literal["step", "epoch", "time"]


@dataclass(frozen=True, slots=True)
class ChartQuery:
    """What to draw. `names` None: every metric."""

    names: tuple[str, ...] | None = None
    x: XAxis = "step"
    start: float | None = None
    stop: float | None = None
    points: int = 2000


@dataclass(frozen=True, slots=True)
class Part:
    """Points of one series in one attempt: what a chart needs of them."""

    attempt: int
    step: Floats
    x: Floats
    value: Floats


@dataclass(slots=True)
class Chart:
    """The answer of `GET …/metrics` (PRODUCT section 10)."""

    x: list[int | float] = field(default_factory=list)
    series: dict[str, list[float | None]] = field(default_factory=dict)
    nonfinite: dict[str, dict[str, str]] = field(default_factory=dict)
    """By name: index into `x` → `nan`, `inf` or `-inf`; the value there is null."""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """By attempt: the range of x for which it is the newest, and how many points it gives."""
    raw_count: int = 0
    """Points in the range before downsampling, over all series."""
    downsampled: bool = False
    last_seq: int = 0


def chart(session: Session, job: str, query: ChartQuery) -> Chart:
    """Read and reduce; an unknown job or one without metrics gives an empty chart."""
    c = tables.job_live.c
    live = session.execute(
        select(c.id, c.frame_seq, c.latest).where(c.job == job, c.deleted == 0)
    ).one_or_none()
    if live is None:
        return Chart(series={name: [] for name in query.names or ()})
    known = list(orjson.loads(live.latest))
    names = known if query.names is None else list(dict.fromkeys(query.names))
    parts = _load(session, live.id, names, query)
    result = reduce_series({name: parts.get(name, []) for name in names}, query)
    result.last_seq = live.frame_seq
    return result


def reduce_series(parts: dict[str, list[Part]], query: ChartQuery) -> Chart:
    """Merge attempts, cut the range, downsample each series, and join them on x."""
    picked: dict[str, tuple[Floats, Floats]] = {}
    spans: dict[int, list[float]] = {}
    result = Chart()
    for name, of_series in parts.items():
        x, value, attempt = merged(of_series)
        keep = np.isfinite(x)
        if query.start is not None:
            keep &= x >= query.start
        if query.stop is not None:
            keep &= x <= query.stop
        if not keep.all():
            x, value, attempt = x[keep], value[keep], attempt[keep]
        result.raw_count += len(x)
        _note_spans(spans, x, attempt)
        chosen = pick(x, value, query.points)
        result.downsampled |= len(chosen) < len(x)
        picked[name] = (x[chosen], value[chosen])
    _join(result, picked)
    result.attempts = [
        {"attempt": attempt, "from": _plain(low), "to": _plain(high), "points": int(count)}
        for attempt, (low, high, count) in sorted(spans.items())
    ]
    return result


def merged(parts: Sequence[Part]) -> tuple[Floats, Floats, Floats]:
    """Return x, value and attempt sorted by x; at each step the newest attempt's last point stands."""
    if not parts:
        empty = np.empty(0)
        return empty, empty, empty
    ordered = sorted(parts, key=lambda part: part.attempt)
    step = np.concatenate([part.step for part in ordered])
    x = np.concatenate([part.x for part in ordered])
    value = np.concatenate([part.value for part in ordered])
    attempt = np.concatenate([np.full(len(p.step), p.attempt, dtype=np.float64) for p in ordered])
    if not (step[1:] > step[:-1]).all():
        # Stable: of equal steps the last one stored by the newest attempt comes last and stays.
        order = np.argsort(step, kind="stable")
        sorted_step = step[order]
        order = order[np.append(sorted_step[1:] != sorted_step[:-1], True)]
        x, value, attempt = x[order], value[order], attempt[order]
    if not (x[1:] >= x[:-1]).all():
        order = np.argsort(x, kind="stable")
        x, value, attempt = x[order], value[order], attempt[order]
    return x, value, attempt


def _note_spans(spans: dict[int, list[float]], x: Floats, attempt: Floats) -> None:
    if not len(x):
        return
    first = attempt[0]
    groups: Iterable[tuple[float, Floats]] = (
        [(first, x)]
        if (attempt == first).all()
        else [(number, x[attempt == number]) for number in np.unique(attempt)]
    )
    for number, part in groups:
        span = spans.setdefault(int(number), [float(part[0]), float(part[-1]), 0])
        span[0], span[1] = min(span[0], float(part[0])), max(span[1], float(part[-1]))
        span[2] += len(part)


def _join(result: Chart, picked: dict[str, tuple[Floats, Floats]]) -> None:
    axes = [x for x, _ in picked.values() if len(x)]
    union = np.unique(np.concatenate(axes)) if axes else np.empty(0)
    result.x = [_plain(value) for value in union.tolist()]
    for name, (x, value) in picked.items():
        column: list[float | None] = [None] * len(union)
        places = np.searchsorted(union, x).tolist()
        finite = np.isfinite(value).tolist()
        marks: dict[str, str] = {}
        for place, ok, number in zip(places, finite, value.tolist(), strict=True):
            if ok:
                column[place] = number
                marks.pop(str(place), None)
            else:
                column[place] = None
                marks[str(place)] = nonfinite_name(number)
        result.series[name] = column
        if marks:
            result.nonfinite[name] = marks


def _plain(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _load(
    session: Session, job_id: int, names: Sequence[str], query: ChartQuery
) -> dict[str, list[Part]]:
    """Read the open tail first, then the chunks: lines sealed in between are seen twice, never missed."""
    line, c = tables.metric_line.c, tables.metric_chunk.c
    lines = session.execute(
        select(tables.metric_line).where(line.job_id == job_id).order_by(line.seq)
    ).mappings()
    tail = series_of_lines(lines, frozenset(names))
    columns = [c.name, c.attempt, c.last_seq, c.step, c.value]
    if query.x != "step":
        columns.append(c[query.x])
    chunks = select(*columns).where(c.job_id == job_id)
    if query.names is not None:
        chunks = chunks.where(c.name.in_(names))
    if query.x == "step" and query.start is not None:
        chunks = chunks.where(c.step_max >= query.start)
    if query.x == "step" and query.stop is not None:
        chunks = chunks.where(c.step_min <= query.stop)
    found: dict[str, list[Part]] = {}
    sealed: dict[tuple[str, int], int] = {}
    for row in session.execute(chunks.order_by(c.first_seq)).mappings():
        step = floats(row["step"])
        x = step if query.x == "step" else floats(row[query.x])
        part = Part(row["attempt"], step, x, floats(row["value"]))
        found.setdefault(row["name"], []).append(part)
        sealed[row["name"], row["attempt"]] = row["last_seq"]
    for (name, attempt), points in tail.items():
        start = int(np.searchsorted(points.seq, sealed.get((name, attempt), -1), side="right"))
        rest = points.part(start, len(points))
        part = Part(attempt, rest.step, getattr(rest, query.x), rest.value)
        found.setdefault(name, []).append(part)
    return found
