"""The newest values of many jobs at once, for lists: one small row a job, kept by the projector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import select
from sqlmodel import Session

from services.api.telemetry import tables
from services.api.telemetry.ledger import IN_LIMIT
from services.api.telemetry.records import step_number
from shared.db import Database

_PROGRESS = ("step", "total_steps", "epoch", "eta_seconds")


@dataclass(frozen=True, slots=True)
class Latest:
    """What REST shows of a job beside its row."""

    latest_metrics: dict[str, Any] | None = None
    """`{"step": 12, "loss": 2.3}`; a value that is not finite is None and named in `nonfinite`."""
    progress: dict[str, Any] | None = None
    phase: str | None = None
    last_seq: int = 0


async def latest(database: Database, job_uuids: Sequence[str]) -> dict[str, Latest]:
    """Return the newest values by job; a job without telemetry is left out."""
    return await database.read(lambda session: read_latest(session, job_uuids))


def read_latest(session: Session, job_uuids: Iterable[str]) -> dict[str, Latest]:
    """Read them in the caller's session."""
    c = tables.job_live.c
    columns = (c.job, c.frame_seq, c.latest, c.latest_step, c.progress)
    jobs = list(job_uuids)
    found: dict[str, Latest] = {}
    for start in range(0, len(jobs), IN_LIMIT):
        part = jobs[start : start + IN_LIMIT]
        for row in session.execute(select(*columns).where(c.job.in_(part), c.deleted == 0)):
            shown: dict[str, Any] = orjson.loads(row.progress) if row.progress else {}
            found[row.job] = Latest(
                latest_metrics=_metrics(row.latest, row.latest_step),
                progress={k: shown.get(k) for k in _PROGRESS} if "step" in shown else None,
                phase=shown.get("phase"),
                last_seq=row.frame_seq,
            )
    return found


def _metrics(text: str, step: float | None) -> dict[str, Any] | None:
    if step is None or math.isnan(step):
        return None
    values: dict[str, Any] = {}
    nonfinite: dict[str, str] = {}
    for name, (value, _) in orjson.loads(text).items():
        values[name] = None if isinstance(value, str) else value
        if isinstance(value, str):
            nonfinite[name] = value
    values = {"step": None} | values | {"step": step_number(step)}
    if nonfinite:
        values["nonfinite"] = nonfinite
    return values
