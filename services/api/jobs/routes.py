"""`/api/v1/jobs/`: parse, call, return."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel

from services.api.db.tables import JobRow
from services.api.deps import JsonBody, Language, Services
from services.api.jobs.actions import Action
from services.api.jobs.query import Selected
from services.api.jobs.repository import find_job
from services.api.jobs.schemas import (
    JobEventRead,
    JobPage,
    JobPatch,
    JobRead,
    ValidateReply,
    Warn,
)
from services.api.jobs.service import (
    act,
    delete,
    patch,
    read_events,
    read_job,
    read_page,
    see,
    shown,
)
from services.api.jobs.submit import KEY_PATTERN, check, idempotency_key, submit
from services.api.jobs.view import clone_body, job_read
from shared.jobs.reasons import Lang

router = APIRouter(tags=["jobs"])
JOBS = "/api/v1/jobs"
JOB_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobSpec"}}},
    }
}


@router.post(
    f"{JOBS}/",
    status_code=201,
    response_model=JobRead,
    openapi_extra=JOB_BODY,
    summary="Submit a job",
)
@router.post(JOBS, status_code=201, response_model=JobRead, include_in_schema=False)
async def submit_job(
    body: JsonBody,
    services: Services,
    lang: Language,
    key: Annotated[
        str | None, Header(alias="Idempotency-Key", json_schema_extra={"pattern": KEY_PATTERN})
    ] = None,
) -> Response:
    """Accept a job: it is durable when this answers. The same Idempotency-Key and body give the same job."""
    row, made = await submit(services, body, idempotency_key(key))
    headers = {"Location": f"{JOBS}/{row.uuid}"}
    if made:
        return _json(job_read(row, lang, labels={}), 201, headers)
    headers["Idempotency-Replayed"] = "true"
    return _json(await _one(services, row, lang), 201, headers)


@router.post(
    f"{JOBS}:validate", response_model=ValidateReply, openapi_extra=JOB_BODY, summary="Check a job"
)
async def validate_job(body: JsonBody, services: Services, lang: Language) -> ValidateReply:
    """Check a body without submitting it: the resolved configuration, warnings and estimates, or a 422."""
    checked = await check(services, body)
    warnings = [
        Warn(field=w.field, code=w.code, message=w.message_zh if lang == "zh" else w.message_en)
        for w in checked.findings.warnings
    ]
    return ValidateReply(
        valid=True,
        config=checked.config,
        secrets=sorted(checked.secrets),
        warnings=warnings,
        estimates=checked.findings.estimates,
    )


@router.get(f"{JOBS}/", response_model=JobPage, summary="List jobs")
@router.get(JOBS, response_model=JobPage, include_in_schema=False)
async def list_all(
    selection: Selected,
    services: Services,
    lang: Language,
    after: Annotated[
        str | None, Query(max_length=2048, description="`next` of the page before")
    ] = None,
) -> Response:
    """Return a page of jobs and how many there are in each status."""
    return _json(await read_page(services, selection, after, lang))


@router.get(f"{JOBS}/{{uuid}}", response_model=JobRead, summary="Read a job")
async def read_one(uuid: str, services: Services, lang: Language) -> Response:
    """Return one job."""
    return _json(await read_job(services, uuid, lang))


@router.patch(f"{JOBS}/{{uuid}}", response_model=JobRead, summary="Change a job")
async def patch_job(uuid: str, change: JobPatch, services: Services, lang: Language) -> JobRead:
    """Change name, description or tags, and the priority while it waits."""
    return await patch(services, uuid, change, lang)


@router.delete(f"{JOBS}/{{uuid}}", status_code=204, summary="Delete a job")
async def delete_job(uuid: str, services: Services) -> Response:
    """Delete an ended job: its history is gone, its files are collected on the host."""
    await delete(services, uuid)
    return Response(status_code=204)


@router.post(f"{JOBS}/{{uuid}}/cancel", status_code=202, response_model=JobRead, summary="Cancel")
async def cancel_job(uuid: str, services: Services, lang: Language) -> JobRead:
    """Stop a job for good; a checkpoint is saved first."""
    return await act(services, uuid, Action.CANCEL, lang)


@router.post(f"{JOBS}/{{uuid}}/pause", status_code=202, response_model=JobRead, summary="Pause")
async def pause_job(uuid: str, services: Services, lang: Language) -> JobRead:
    """Save a checkpoint and free the GPUs until it is resumed."""
    return await act(services, uuid, Action.PAUSE, lang)


@router.post(f"{JOBS}/{{uuid}}/resume", status_code=202, response_model=JobRead, summary="Resume")
async def resume_job(uuid: str, services: Services, lang: Language) -> JobRead:
    """Go on from the newest checkpoint."""
    return await act(services, uuid, Action.RESUME, lang)


@router.post(f"{JOBS}/{{uuid}}/retry", status_code=202, response_model=JobRead, summary="Retry")
async def retry_job(uuid: str, services: Services, lang: Language) -> JobRead:
    """Reopen a failed or cancelled job as a new attempt from its newest readable checkpoint."""
    return await act(services, uuid, Action.RETRY, lang)


@router.post(
    f"{JOBS}/{{uuid}}/declare-lost", status_code=202, response_model=JobRead, summary="Declare lost"
)
async def declare_lost(uuid: str, services: Services, lang: Language) -> JobRead:
    """Say that the silent host will not come back: the job is requeued and that host's attempt fenced off."""
    return await act(services, uuid, Action.DECLARE_LOST, lang)


@router.post(f"{JOBS}/{{uuid}}/clone", response_model=dict[str, Any], summary="Clone")
async def clone_job(uuid: str, services: Services) -> dict[str, Any]:
    """Return a body to submit, filled with the job's values; nothing is saved, secrets are left out."""
    return clone_body(await services.main.read(lambda session: find_job(session, uuid)))


@router.get(f"{JOBS}/{{uuid}}/events", response_model=list[JobEventRead], summary="History")
async def job_events(
    uuid: str,
    services: Services,
    lang: Language,
    after: Annotated[int, Query(ge=0, le=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
) -> list[JobEventRead]:
    """Return what happened to a job, oldest first."""
    return await read_events(services, uuid, after, limit, lang)


async def _one(services: Services, row: JobRow, lang: Lang) -> JobRead:
    seen = await services.main.read(lambda session: see(session, [row]))
    return (await shown(services, seen, lang))[0]


def _json(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return the model as it is: the framework would validate it a second time."""
    return Response(model.model_dump_json(), status, headers, "application/json")
