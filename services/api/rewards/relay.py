"""Alerts leave the database for the stream ALERTS, for whoever subscribes there."""

from __future__ import annotations

import asyncio

from sqlalchemy import select, update
from sqlmodel import Session, col

from services.api.db.tables import AlertRow
from services.api.deps import ApiServices
from shared.bus.port import BusError
from shared.db import DatabaseBusy, DatabaseFull
from shared.events import Envelope, subjects
from shared.events.reward import AlertRaised
from shared.log import logger

LOG = logger("api.alerts")
LOOK_SECONDS = 2.0
BATCH = 100


class AlertRelay:
    """`run` for the life of the app. The row's id is the message's, so that a repeated publishing is dropped."""

    def __init__(self, services: ApiServices) -> None:
        self._services = services

    async def run(self) -> None:
        """Publish what is not, again and again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._publish()
            except (BusError, DatabaseBusy, DatabaseFull, TimeoutError) as error:
                LOG.info("alerts_wait", error=str(error)[:200])

    async def _publish(self) -> None:
        rows = await self._services.main.read(_waiting)
        if not rows or not self._services.link.is_connected:
            return
        bus = self._services.link.bus
        for row in rows:
            event = AlertRaised.model_validate(
                {"id": row.id, "at": row.at, "rule": row.rule, "severity": row.severity, "job": row.job,
                 "provider": row.provider, "message_en": row.message_en, "message_zh": row.message_zh}
            )  # fmt: skip
            envelope = Envelope(row.id, "/trainyard/api", self._services.clock.now())
            subject = subjects.alert(row.severity, row.rule, row.job)
            await bus.publish(subject, event, envelope, msg_id=row.id)
        done = [row.id for row in rows]
        await self._services.main.write(lambda session: _mark(session, done))


def _waiting(session: Session) -> list[AlertRow]:
    statement = (
        select(AlertRow)
        .where(col(AlertRow.published).is_(False))
        .order_by(col(AlertRow.at))
        .limit(BATCH)
    )
    return list(session.execute(statement).scalars())


def _mark(session: Session, done: list[str]) -> None:
    session.execute(update(AlertRow).where(col(AlertRow.id).in_(done)).values(published=True))
