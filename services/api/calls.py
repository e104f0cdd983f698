"""What hosts ask the api over the bus: the secrets of an attempt, granted to the host to which it is assigned."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from pydantic import ValidationError
from sqlmodel import Session

from services.api.db.tables import JobRow, JobSecretRow
from services.api.deps import ApiServices
from services.api.secrets.store import open_all, secrets_of
from shared.errors import TrainyardError
from shared.events.calls import SecretQuery, SecretReply
from shared.jobs.status import JobStatus
from shared.log import logger

LOG = logger("api.calls")
SECRET_PATTERN = "secret.*"
BEHIND_SECONDS = 2.0
"""An agent may ask before the assignment has been projected here; its own deadline is 3 s."""
_LOOK_EVERY = 0.05

Grant = Literal["granted", "not_yet", "refused"]


def grant(row: JobRow | None, host: str, attempt: int) -> Grant:
    """Decide whether `host` may have the secrets of `attempt`; `not_yet` when we know only an older attempt."""
    if row is None or row.deleted_at is not None:
        return "refused"
    if attempt > row.attempt:
        return "not_yet"
    current = attempt == row.attempt and row.host == host
    return "granted" if current and not JobStatus(row.status).is_terminal else "refused"


class SecretDesk:
    """Answers `secret.<host>`; identity is the subject's, which the broker has checked."""

    def __init__(self, services: ApiServices) -> None:
        """Use the main database and the keyring."""
        self._services = services

    async def answer(self, subject: str, data: bytes) -> SecretReply | None:
        """Return the values for the attempt that runs on this host now, else why not. Values are never logged."""
        host = subject.partition(".")[2]
        try:
            query = SecretQuery.model_validate_json(data)
        except ValidationError:
            LOG.warning("secret_query_malformed", host=host)
            return None
        verdict, rows = await self._look(host, query)
        self._services.metrics.secrets.labels(verdict).inc()
        if verdict != "granted":
            LOG.warning(
                "secret_refused", host=host, job=query.job, attempt=query.attempt, verdict=verdict
            )
            return SecretReply(ok=False, error=verdict)
        try:
            values = open_all(self._services.keyring, rows)
        except TrainyardError as error:
            LOG.error("secret_unreadable", job=query.job, error=error.detail_en)
            return SecretReply(ok=False, error=error.detail_en)
        return SecretReply(ok=True, values=values)

    async def _look(self, host: str, query: SecretQuery) -> tuple[Grant, list[JobSecretRow]]:
        def work(session: Session) -> tuple[Grant, list[JobSecretRow]]:
            found = grant(session.get(JobRow, query.job), host, query.attempt)
            return found, secrets_of(session, query.job) if found == "granted" else []

        deadline = time.monotonic() + BEHIND_SECONDS
        while True:
            verdict, rows = await self._services.main.read(work)
            if verdict != "not_yet" or time.monotonic() > deadline:
                return verdict, rows
            await asyncio.sleep(_LOOK_EVERY)
