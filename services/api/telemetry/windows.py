"""Windows into what was recorded: log lines, samples, system figures, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlmodel import Session

from services.api.telemetry import tables
from services.api.telemetry.frames import frame_of_record, moment
from services.api.telemetry.records import LEVEL_NAMES

R = tables.record.c
SampleSort = Literal["step", "-step", "reward", "-reward"]


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which lines. Without `after` and `before`: the newest `limit` ones."""

    after: int | None = None
    before: int | None = None
    limit: int = 100
    q: str | None = None
    level: int | None = None
    """The lowest level shown."""


def job_id_of(session: Session, job: str) -> tuple[int, int] | None:
    """Return the telemetry id and newest frame number of a job that is there."""
    c = tables.job_live.c
    row = session.execute(
        select(c.id, c.frame_seq).where(c.job == job, c.deleted == 0)
    ).one_or_none()
    return (row.id, row.frame_seq) if row else None


def logs(session: Session, job_id: int, query: LogQuery) -> list[dict[str, Any]]:
    """Return log lines, oldest first."""
    wanted: list[ColumnElement[bool]] = [R.job_id == job_id, R.type == "log"]
    if query.after is not None:
        wanted.append(R.seq > query.after)
    if query.before is not None:
        wanted.append(R.seq < query.before)
    if query.level is not None:
        wanted.append(R.level >= query.level)
    if query.q:
        wanted.append(R.text.icontains(query.q, autoescape=True))
    statement = select(R.seq, R.time, R.level, R.text, R.attempt, R.body).where(*wanted)
    forwards = query.after is not None
    statement = statement.order_by(R.seq if forwards else R.seq.desc()).limit(query.limit)
    rows = [_log_line(row) for row in session.execute(statement).mappings()]
    return rows if forwards else rows[::-1]


def _log_line(row: Any) -> dict[str, Any]:
    extra: dict[str, Any] = orjson.loads(row["body"]) if row["body"] else {}
    return {
        "seq": row["seq"],
        "time": moment(row["time"]),
        "level": LEVEL_NAMES.get(row["level"], "INFO"),
        "message": row["text"],
        "attempt": row["attempt"],
        **extra,
    }


@dataclass(frozen=True, slots=True)
class SampleQuery:
    """Which sample completions, in which order, and behind which one."""

    step: float | None = None
    prompt: str | None = None
    """Only samples whose prompt holds this text; case does not count."""
    sort: SampleSort = "-step"
    after: int | None = None
    """`seq` of the last sample of the page before."""
    limit: int = 50


@dataclass(frozen=True, slots=True)
class SampleWindow:
    """One page; `next` is None at the end."""

    items: list[dict[str, Any]]
    next: int | None


def samples(session: Session, job_id: int, query: SampleQuery) -> SampleWindow | None:
    """Return sample completions; of equal sort keys the newest first. None where `after` names no sample."""
    column = R.value if query.sort.endswith("reward") else R.step
    falling = query.sort.startswith("-")
    wanted: list[ColumnElement[bool]] = [R.job_id == job_id, R.type == "sample"]
    if query.after is not None:
        last = session.execute(select(column.label("key")).where(*wanted, R.seq == query.after))
        row = last.one_or_none()
        if row is None:
            return None
        wanted.append(_behind(column, row.key, query.after, falling=falling))
    if query.step is not None:
        wanted.append(R.step == query.step)
    if query.prompt:
        wanted.append(R.text.icontains(query.prompt, autoescape=True))
    order = (column.desc() if falling else column.asc()).nulls_last()
    statement = select(tables.record).where(*wanted).order_by(order, R.seq.desc())
    rows = session.execute(statement.limit(query.limit + 1)).mappings().all()
    items = [_with_seq(row) for row in rows[: query.limit]]
    return SampleWindow(items, items[-1]["seq"] if len(rows) > query.limit else None)


def _behind(
    column: ColumnElement[Any], key: float | None, seq: int, *, falling: bool
) -> ColumnElement[bool]:
    """Return what comes behind (key, seq) where keys fall or rise, null last, and numbers fall."""
    if key is None:
        return and_(column.is_(None), R.seq < seq)
    further = column < key if falling else column > key
    return or_(further, and_(column == key, R.seq < seq), column.is_(None))


def _with_seq(row: Any) -> dict[str, Any]:
    frame = frame_of_record(row)
    return {"seq": frame.seq, "time": moment(frame.time), **frame.data}


def checkpoints(session: Session, job_id: int) -> list[dict[str, Any]]:
    """Return the checkpoints that are there, by step, for a snapshot."""
    statement = (
        select(tables.record)
        .where(R.job_id == job_id, R.type == "checkpoint")
        .order_by(R.attempt, R.seq)
    )
    found: dict[int, dict[str, Any]] = {}
    best: int | None = None
    last: int | None = None
    for row in session.execute(statement).mappings():
        data = frame_of_record(row).data
        step = int(data["step"])
        if data.pop("deleted", False):
            found.pop(step, None)
            continue
        found[step] = data
        best = step if data["best"] else best
        last = step
    for step, data in found.items():
        data["best"], data["last"] = step == best, step == last
    return [found[step] for step in sorted(found)]


def system(session: Session, job_id: int, start: float, stop: float, points: int) -> dict[str, Any]:
    """Return GPU, CPU and memory over time, columnar; at most `points` samples, evenly thinned."""
    where = (R.job_id == job_id, R.type == "system", R.time >= start, R.time <= stop)
    count = int(session.execute(select(func.count()).where(*where)).scalar_one())
    stride = max(1, -(-count // points))
    rows = list(session.execute(_thinned(where, stride)).mappings())
    bodies: list[Mapping[str, Any]] = [orjson.loads(row["body"]) for row in rows]
    indices = sorted(
        {gpu["index"] for body in bodies for gpu in _gpus(body) if isinstance(gpu["index"], int)}
    )
    gpus = []
    for index in indices:
        by_row = [next((g for g in _gpus(b) if g["index"] == index), {}) for b in bodies]
        names = ("utilization", "memory_used_mib", "memory_mib")
        gpus.append({"index": index, **{n: [gpu.get(n) for gpu in by_row] for n in names}})
    return {
        "time": [row["time"] for row in rows],
        "attempt": [row["attempt"] for row in rows],
        "gpus": gpus,
        "cpu_percent": [body.get("cpu_percent") for body in bodies],
        "rss_mib": [body.get("rss_mib") for body in bodies],
        "raw_count": count,
        "downsampled": stride > 1,
    }


def _thinned(where: tuple[ColumnElement[bool], ...], stride: int) -> Select[Any]:
    numbered = (
        select(R.seq, R.time, R.attempt, R.body, func.row_number().over(order_by=R.seq).label("n"))
        .where(*where)
        .subquery()
    )
    total = select(func.max(numbered.c.n)).scalar_subquery()
    return (
        select(numbered)
        .where(or_((numbered.c.n - 1) % stride == 0, numbered.c.n == total))
        .order_by(numbered.c.seq)
    )


def _gpus(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = body.get("gpus")
    return (
        [g for g in found if isinstance(g, dict) and "index" in g]
        if isinstance(found, list)
        else []
    )
