"""REST of metrics, logs, samples and system figures of one job."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query
from sqlmodel import Session
from starlette.responses import Response, StreamingResponse

from services.api.deps import Language, Services
from services.api.monitoring.schemas import LogPage, MetricsRead, SamplePage, SystemRead
from services.api.telemetry.records import LEVELS
from services.api.telemetry.series import ChartQuery, chart
from services.api.telemetry.windows import (
    LogQuery,
    SampleQuery,
    SampleSort,
    job_id_of,
    logs,
    samples,
    system,
)
from shared.db import Database
from shared.errors import FieldProblem, invalid, not_found
from shared.jobs.reasons import Lang

ReadJob = Callable[[str, Lang], Awaitable[dict[str, Any]]]
"""Returns a job as REST shows it; raises `not_found` for an unknown or deleted one."""
DEFAULT_POINTS, MAX_POINTS = 2000, 10_000
DOWNLOAD_LINES = 5000
MAX_NAMES = 1000
Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Seq = Annotated[int, Query(ge=0, le=2**53)]
Bound = Annotated[float | None, Query(allow_inf_nan=False)]


def telemetry_routes(read_job: ReadJob) -> APIRouter:
    """Return the routes below `/api/v1/jobs/{uuid}`."""
    router = APIRouter(prefix="/api/v1/jobs/{uuid}", tags=["monitoring"])

    async def job_uuid(uuid: str, lang: Lang) -> str:
        """Return the uuid as it is stored. Raises the 404, also while a deleted job is being emptied."""
        return str((await read_job(uuid, lang))["uuid"])

    async def found(services: Services, uuid: str, lang: Lang) -> tuple[int, int]:
        """Return the telemetry id (0: none yet) and newest frame number. Raises the 404."""
        job = await job_uuid(uuid, lang)
        return await services.telemetry.read(lambda s: job_id_of(s, job)) or (0, 0)

    @router.get("/metrics", response_model=MetricsRead)
    async def read_metrics(  # noqa: PLR0913 - one parameter each in the query
        uuid: str,
        services: Services,
        lang: Language,
        names: Annotated[
            str | None,
            Query(
                description="Comma-separated; default: all.",
                json_schema_extra={"pattern": r"[^,\s]"},
            ),
        ] = None,
        x: Literal["step", "epoch", "time"] = "step",
        start: Annotated[
            float | None, Query(alias="from", allow_inf_nan=False, description="Lowest x.")
        ] = None,
        stop: Annotated[
            float | None, Query(alias="to", allow_inf_nan=False, description="Highest x.")
        ] = None,
        points: Annotated[
            int, Query(ge=1, le=MAX_POINTS, description="At most so many per series.")
        ] = DEFAULT_POINTS,
    ) -> Response:
        """Return metrics as columns; of several attempts the newest stands at each step."""
        _check_range(start, stop)
        query = ChartQuery(_names(names), x, start, stop, points)
        job = await job_uuid(uuid, lang)
        body = await services.telemetry.read(lambda s: orjson.dumps(chart(s, job, query)))
        return Response(body, media_type="application/json")

    @router.get("/logs", response_model=LogPage)
    async def read_logs(  # noqa: PLR0913 - one parameter each in the query
        uuid: str,
        services: Services,
        lang: Language,
        after: Annotated[
            int | None, Query(ge=0, le=2**53, description="Lines above this seq, oldest first.")
        ] = None,
        before: Annotated[
            int | None, Query(ge=0, le=2**53, description="Lines below this seq, the nearest ones.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=5000)] = 100,
        q: Annotated[
            str | None, Query(max_length=500, description="Text in the line, any case.")
        ] = None,
        level: Annotated[Level | None, Query(description="This level and above.")] = None,
    ) -> dict[str, Any]:
        """Return a window of the log; without `after` and `before` the newest lines."""
        job_id, last_seq = await found(services, uuid, lang)
        text = q.replace("\x00", "") if q else None
        query = LogQuery(after, before, limit + 1, text, LEVELS[level] if level else None)
        rows = await services.telemetry.read(lambda s: logs(s, job_id, query))
        return _page(rows, query, limit) | {"last_seq": last_seq}

    @router.get(
        "/logs/download",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def download_logs(
        uuid: str,
        services: Services,
        lang: Language,
        level: Annotated[Level | None, Query(description="This level and above.")] = None,
    ) -> StreamingResponse:
        """Return the whole log as text, `[INFO] message` a line."""
        job_id, last_seq = await found(services, uuid, lang)
        lowest = LEVELS[level] if level else None
        return StreamingResponse(
            _log_text(services.telemetry, job_id, last_seq, lowest),
            media_type="text/plain; charset=utf-8",
            headers={"Content-Disposition": f'attachment; filename="{_file_name(uuid)}.log"'},
        )

    @router.get("/samples", response_model=SamplePage)
    async def read_samples(  # noqa: PLR0913 - one parameter each in the query
        uuid: str,
        services: Services,
        lang: Language,
        step: Bound = None,
        prompt: Annotated[
            str | None,
            Query(max_length=1000, description="Only samples whose prompt holds this text."),
        ] = None,
        sort: SampleSort = "-step",
        after: Annotated[
            int | None,
            Query(ge=0, le=2**53, description="`next` of the page before."),
        ] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> Response:
        """Return sample completions with rewards."""
        job_id, last_seq = await found(services, uuid, lang)
        query = SampleQuery(step, prompt, sort, after, limit)

        body = await services.telemetry.read(lambda s: _sample_page(s, job_id, query, last_seq))
        return Response(body, media_type="application/json")

    @router.get("/system", response_model=SystemRead)
    async def read_system(
        uuid: str,
        services: Services,
        lang: Language,
        start: Annotated[float | None, Query(alias="from", allow_inf_nan=False)] = None,
        stop: Annotated[float | None, Query(alias="to", allow_inf_nan=False)] = None,
        points: Annotated[int, Query(ge=2, le=MAX_POINTS)] = 500,
    ) -> Response:
        """Return GPU, CPU and memory over time; `from` and `to` in seconds since the epoch."""
        _check_range(start, stop)
        job_id, last_seq = await found(services, uuid, lang)
        low = -math.inf if start is None else start
        high = math.inf if stop is None else stop

        def work(session: Session) -> bytes:
            found_rows = system(session, job_id, max(low, 0.0), min(high, 1e12), points)
            return orjson.dumps(found_rows | {"last_seq": last_seq})

        return Response(await services.telemetry.read(work), media_type="application/json")

    return router


def _page(rows: list[dict[str, Any]], query: LogQuery, limit: int) -> dict[str, Any]:
    """Cut the one line more that was asked for to see whether there are more."""
    more = len(rows) > limit
    if query.after is not None:
        rows = rows[:limit]
        following = more
        preceding = bool(rows)
    else:
        rows = rows[-limit:]
        following = query.before is not None
        preceding = more
    return {
        "items": rows,
        "next": rows[-1]["seq"] if rows and following else None,
        "previous": rows[0]["seq"] if rows and preceding else None,
    }


async def _log_text(
    database: Database, job_id: int, upto: int, level: int | None
) -> AsyncIterator[bytes]:
    after = 0
    while True:
        query = LogQuery(after=after, before=upto + 1, limit=DOWNLOAD_LINES, level=level)
        rows = await database.read(lambda s, q=query: logs(s, job_id, q))  # type: ignore[misc]
        if rows:
            yield "".join(f"[{row['level']}] {row['message']}\n" for row in rows).encode()
        if len(rows) < DOWNLOAD_LINES:
            return
        after = rows[-1]["seq"]


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(dict.fromkeys(n.strip() for n in text.split(",") if n.strip()))
    if not names or len(names) > MAX_NAMES:
        raise invalid(
            [
                FieldProblem(
                    "names",
                    text[:200],
                    f"Give between 1 and {MAX_NAMES} metric names, separated by commas, or leave it out.",
                    f"请给出 1 到 {MAX_NAMES} 个以逗号分隔的指标名，或省略该参数。",
                )
            ]
        )
    return names


def _check_range(start: float | None, stop: float | None) -> None:
    if start is not None and stop is not None and start > stop:
        raise invalid(
            [
                FieldProblem(
                    "from",
                    start,
                    f"`from` ({start:g}) is above `to` ({stop:g}); exchange them.",
                    f"from（{start:g}）大于 to（{stop:g}），请对调。",
                )
            ]
        )


def _file_name(uuid: str) -> str:
    return "".join(c for c in uuid if c.isascii() and (c.isalnum() or c in "-_"))[:64]


def _sample_page(session: Session, job_id: int, query: SampleQuery, last_seq: int) -> bytes:
    page = samples(session, job_id, query)
    if page is None:
        raise not_found("sample", "样例", str(query.after))
    return orjson.dumps({"items": page.items, "next": page.next, "last_seq": last_seq})
