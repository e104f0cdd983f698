"""`/api/v1/jobs/{uuid}/secrets`: written and deleted; read only as a name and four characters."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Response
from sqlalchemy import delete
from sqlmodel import Session, col

from services.api.db.tables import JobRow, JobSecretRow
from services.api.deps import Services
from services.api.jobs.repository import find_job
from services.api.jobs.schemas import SecretRead, SecretValue
from services.api.outbox import add_request
from services.api.secrets.names import NAME_PATTERN, check_name
from services.api.secrets.store import seal, secrets_of
from shared.errors import TrainyardError, not_found
from shared.events.requests import JobSecretsRequested

router = APIRouter(tags=["secrets"])
SECRETS = "/api/v1/jobs/{uuid}/secrets"
SECRETS_AT_MOST = 64


@router.get(SECRETS, response_model=list[SecretRead], summary="List secrets")
async def list_secrets(uuid: str, services: Services) -> list[SecretRead]:
    """Return which secrets a job has; their values cannot be read."""
    rows = await services.main.read(
        lambda session: secrets_of(session, find_job(session, uuid).uuid)
    )
    return [SecretRead(name=row.name, last4=row.last4, created_at=row.created_at) for row in rows]


@router.put(SECRETS + "/{name}", status_code=204, summary="Set a secret")
async def put_secret(
    uuid: str,
    name: Annotated[str, Path(json_schema_extra={"pattern": NAME_PATTERN})],
    value: SecretValue,
    services: Services,
) -> Response:
    """Store or replace one secret, encrypted. Running attempts keep what they were given."""
    check_name(name)
    now = services.clock.now()

    def work(session: Session) -> None:
        row = find_job(session, uuid, lock=True)
        there = {secret.name for secret in secrets_of(session, row.uuid)}
        if len(there) >= SECRETS_AT_MOST and name not in there:
            raise _too_many()
        _drop(session, row.uuid, name)
        session.add_all(seal(services.keyring, row.uuid, {name: value.value}, now))
        if name not in there:
            _tell(session, row, there | {name}, now)
        session.flush()

    await services.main.write(work)
    services.wake_outbox()
    return Response(status_code=204)


@router.delete(SECRETS + "/{name}", status_code=204, summary="Delete a secret")
async def delete_secret(uuid: str, name: str, services: Services) -> Response:
    """Forget one secret."""
    now = services.clock.now()

    def work(session: Session) -> None:
        row = find_job(session, uuid, lock=True)
        if not _drop(session, row.uuid, name):
            raise not_found("secret", "密钥", name[:64])
        _tell(session, row, {secret.name for secret in secrets_of(session, row.uuid)}, now)
        session.flush()

    await services.main.write(work)
    services.wake_outbox()
    return Response(status_code=204)


def _tell(session: Session, row: JobRow, names: set[str], now: datetime) -> None:
    """Let the scheduler know which secrets the next attempt has to fetch, in the same transaction."""
    row.req_n += 1
    add_request(
        session,
        JobSecretsRequested(
            job=row.uuid, req_n=row.req_n, at=now, secret_names=tuple(sorted(names))
        ),
    )


def _drop(session: Session, job: str, name: str) -> bool:
    row = session.get(JobSecretRow, (job, name))
    session.execute(
        delete(JobSecretRow).where(col(JobSecretRow.job) == job, col(JobSecretRow.name) == name)
    )
    if row is not None:
        session.expunge(row)
    return row is not None


def _too_many() -> TrainyardError:
    return TrainyardError(
        "too_many_secrets",
        409,
        "Too many secrets",
        "密钥过多",
        f"A job has at most {SECRETS_AT_MOST} secrets. Delete one first.",
        f"每个任务最多 {SECRETS_AT_MOST} 个密钥，请先删除一个。",
    )
