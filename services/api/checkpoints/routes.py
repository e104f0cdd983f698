"""`/api/v1/jobs/{uuid}/checkpoints`: what there is, and each as a tar archive."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel
from sqlalchemy import select
from sqlmodel import Session, col
from starlette.responses import StreamingResponse

from services.api.checkpoints.archive import (
    HostFolder,
    LocalFolder,
    Source,
    readable_here,
    tar_size,
    tar_stream,
)
from services.api.db.tables import CheckpointRow, JobRow
from services.api.deps import ApiServices, Services
from services.api.jobs.repository import find_job, host_labels
from services.api.jobs.schemas import Time
from shared.errors import TrainyardError

router = APIRouter(tags=["checkpoints"])
CHECKPOINTS = "/api/v1/jobs/{uuid}/checkpoints"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class CheckpointRead(BaseModel):
    """One complete checkpoint."""

    step: int
    kind: str
    path: str
    metrics: dict[str, Any]
    size_bytes: int
    best: bool
    last: bool
    created_at: Time
    attempt: int
    host: str
    """Label of the host that saved it, as `host` of a job."""
    host_id: str


@router.get(CHECKPOINTS, response_model=list[CheckpointRead], summary="List checkpoints")
async def list_checkpoints(uuid: str, services: Services) -> list[CheckpointRead]:
    """Return the complete checkpoints by step; `last` is the newest of the newest attempt."""

    def work(session: Session) -> tuple[list[CheckpointRow], dict[str, str]]:
        return checkpoints_of(session, find_job(session, uuid).uuid), host_labels(session)

    rows, labels = await services.main.read(work)
    newest = max(rows, key=lambda row: (row.attempt, row.step), default=None)
    return [_read(row, labels, last=row is newest) for row in rows]


@router.get(
    CHECKPOINTS + "/{step}/download",
    summary="Download a checkpoint",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-tar": {}}}},
)
async def download(
    uuid: str, step: Annotated[int, Path(ge=0, le=2**31 - 1)], services: Services
) -> StreamingResponse:
    """Return the folder as a tar archive, streamed from where it lies."""

    def work(session: Session) -> tuple[JobRow, CheckpointRow]:
        job = find_job(session, uuid)
        row = session.get(CheckpointRow, (job.uuid, step))
        if row is None or row.deleted:
            raise _missing(step, [r.step for r in checkpoints_of(session, job.uuid)])
        return job, row

    job, row = await services.main.read(work)
    source = _source(services, row)
    entries = await source.entries()
    folder = f"checkpoint-{step}"
    name = _UNSAFE.sub("-", job.name).strip("-.")[:80] or job.uuid
    headers = {
        "Content-Disposition": f'attachment; filename="{name}-{folder}.tar"',
        "Content-Length": str(tar_size(entries, folder)),
    }
    return StreamingResponse(
        tar_stream(source, entries, folder), media_type="application/x-tar", headers=headers
    )


def checkpoints_of(session: Session, job: str) -> list[CheckpointRow]:
    """Return the rows of a job that can still be read, by step."""
    statement = (
        select(CheckpointRow)
        .where(col(CheckpointRow.job) == job, col(CheckpointRow.deleted).is_(False))
        .order_by(col(CheckpointRow.step))
    )
    return list(session.execute(statement).scalars())


def _source(services: ApiServices, row: CheckpointRow) -> Source:
    settings = services.settings
    here = readable_here(row.path, (settings.checkpoint_dir, settings.home))
    if here is not None:
        return LocalFolder(here)
    return HostFolder(services.link.bus, row.host, row.job, row.path)


def _read(row: CheckpointRow, labels: Mapping[str, str], *, last: bool) -> CheckpointRead:
    return CheckpointRead(
        step=row.step,
        kind=row.kind,
        path=row.path,
        metrics=row.metrics,
        size_bytes=row.size_bytes,
        best=row.best,
        last=last,
        created_at=row.created_at,
        attempt=row.attempt,
        host=labels.get(row.host, row.host),
        host_id=row.host,
    )


def _missing(step: int, there: list[int]) -> TrainyardError:
    shown = ", ".join(str(s) for s in there[-20:]) or "-"
    return TrainyardError(
        "checkpoint_not_found",
        404,
        "Not found",
        "未找到",
        f"There is no checkpoint at step {step}; there are {shown}.",
        f"没有第 {step} 步的检查点，现有：{shown}。",
    )
