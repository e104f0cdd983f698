"""`/livez`, `/readyz`, `/metrics`: whether the process lives, what it lacks, what it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session
from starlette.responses import JSONResponse, PlainTextResponse

from services.api.deps import ApiServices, Services
from services.api.jobs.repository import count_by_status
from services.api.outbox import depth
from shared.bus.embedded import health as broker_health
from shared.db import Database, DatabaseBusy, DatabaseFull
from shared.disk.levels import Level, in_words, shortage
from shared.disk.volumes import NEEDED, Standing
from shared.jobs.status import JobStatus

router = APIRouter(tags=["health"])
CHECK_SECONDS = 3.0
BROKER_SECONDS = 1.0
"""An answer of the broker serves for so long: each question opens a connection."""
LAG_LIMIT = 5000
"""Messages behind the stream from which the read model is too old to call the api ready."""


class CheckRead(BaseModel):
    """One thing that readiness needs, as REST shows it."""

    ok: bool
    detail: str


class ReadyRead(BaseModel):
    """Whether everything works."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, CheckRead]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that readiness needs."""

    name: str
    ok: bool
    detail: str


@router.get("/livez", summary="Liveness")
async def livez() -> dict[str, str]:
    """Answer while the event loop runs."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Readiness",
    response_model=ReadyRead,
    responses={503: {"model": ReadyRead, "description": "Something that is needed is away"}},
)
async def readyz(services: Services) -> JSONResponse:
    """Answer 200 when everything works, else 503 that says what does not. Jobs are accepted without the bus too."""
    checks = await readiness(services)
    ready = all(check.ok for check in checks)
    body = {
        "status": "ready" if ready else "not_ready",
        "checks": {c.name: {"ok": c.ok, "detail": c.detail} for c in checks},
    }
    return JSONResponse(body, status_code=200 if ready else 503)


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(services: Services) -> Response:
    """Return counters and gauges in the Prometheus text format."""
    await collect(services)
    body = generate_latest(services.metrics.registry)
    stats = services.projector.stats if services.projector else None
    if stats is not None:
        lines = ["# HELP trainyard_stale_events_total Items counted and not stored, by reason"]
        lines.append("# TYPE trainyard_stale_events_total counter")
        lines += [
            f'trainyard_stale_events_total{{reason="{reason}"}} {count}'
            for reason, count in sorted(stats.stale.items())
        ]
        body += ("\n".join(lines) + "\n").encode()
    return Response(body, media_type=CONTENT_TYPE_LATEST)


async def readiness(services: ApiServices) -> list[Check]:
    """Return every check; none takes longer than CHECK_SECONDS."""
    main, telemetry = await asyncio.gather(
        _database("database", services.main), _database("telemetry_database", services.telemetry)
    )
    connected = services.link.is_connected
    bus = Check("bus", connected, "connected" if connected else "the broker cannot be reached")
    if connected:
        bus = await _broker(services)
    return [main, telemetry, bus, _projection(services), disk_check(services.disks.look())]


async def _broker(services: ApiServices) -> Check:
    """Connected is not enough: a stream that met a full disk takes nothing until the broker is started again."""
    settings, now = services.settings, services.clock.boot()
    if services.broker_seen is None or now - services.broker_seen[0] >= BROKER_SECONDS:
        asked = await broker_health(settings.home, settings.nats_url, CHECK_SECONDS)
        services.broker_seen = (now, asked)
    found = services.broker_seen[1]
    trouble = found.trouble if found.answered else None
    if trouble is None and services.outbox_stuck is not None:
        trouble = services.outbox_stuck
    if trouble is None:
        return Check("bus", True, "connected")
    if settings.nats_url is None:
        cure = "`trainyard up` starts it again by itself once its disk has room"
    else:
        cure = "free its disk, then restart the broker; nothing that was accepted is lost"
    return Check("bus", False, f"connected, but the broker takes no messages: {trouble}; {cure}")


def disk_check(standings: Sequence[Standing]) -> Check:
    """Name every volume that is full or low, with path, need and have; not ready without one that requests need."""
    full = [s for s in standings if s.level is Level.FULL]
    low = [s for s in standings if s.level is Level.LOW]
    told = [f"{s.name} is full: {shortage(s.volume).en}" for s in full]
    told += [
        f"{s.name} is low: {s.volume.path} has {in_words(s.volume.free)} of {in_words(s.volume.total)} free"
        for s in low
    ]
    ready = not any(s.name in NEEDED for s in full)
    return Check("disk", ready, "; ".join(told) or "ok")


def _projection(services: ApiServices) -> Check:
    projector = services.projector
    if projector is None:
        return Check("projection", False, "waits for the broker")
    if projector.superseded.is_set():
        return Check("projection", False, "a newer api has taken over this database")
    behind = {stream: count for stream, count in projector.lag().items() if count > LAG_LIMIT}
    if behind:
        told = ", ".join(f"{stream} by {count}" for stream, count in sorted(behind.items()))
        return Check("projection", False, f"behind: {told} messages")
    ready = bool(projector.ready)
    return Check("projection", ready, "current" if ready else "waits for the streams")


async def collect(services: ApiServices) -> None:
    """Set the gauges that are read from the databases."""

    def work(session: Session) -> tuple[int, dict[str, int]]:
        return depth(session), count_by_status(session)

    waiting, counts = await services.main.read(work)
    services.metrics.outbox.set(waiting)
    services.metrics.connected.set(1 if services.link.is_connected else 0)
    for status in JobStatus:
        services.metrics.jobs.labels(status.value).set(counts.get(status.value, 0))
    if services.projector is not None:
        for stream, count in services.projector.lag().items():
            services.metrics.lag.labels(stream).set(count)


async def _database(name: str, database: Database) -> Check:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await database.read(lambda session: session.execute(text("SELECT 1")).scalar())
    except (SQLAlchemyError, DatabaseBusy, DatabaseFull, TimeoutError) as error:
        return Check(name, False, f"cannot be read: {type(error).__name__}")
    return Check(name, True, "ok")
