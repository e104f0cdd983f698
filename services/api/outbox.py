"""Users' requests leave the database for the stream REQUESTS: in order per job, again whenever the stream was made anew.

`repeats` says those again that the scheduler leaves unanswered.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, and_, func, insert, or_, select, update
from sqlmodel import Session, col

from services.api.db.tables import HostRow, JobRow, RequestRow
from services.api.deps import ApiServices
from services.api.settings import OUTBOX_BATCH
from shared.bus.port import BusError, MessageTooLarge, PublishTimeout
from shared.events import Envelope, subjects
from shared.events.base import EventBase
from shared.events.requests import (
    HostDrainRequested,
    HostForgetRequested,
    HostRequest,
    JobRequest,
    RequestBase,
)
from shared.ids import new_message_id
from shared.jobs.status import TERMINAL
from shared.log import logger

LOG = logger("api.outbox")
STREAM = "REQUESTS"
IDLE_SECONDS = 15.0
"""How often the stream's epoch is looked at while nothing happens."""
RETRY_SECONDS = 0.5
SOURCE = "/trainyard/api"
_INSERT = insert(RequestRow.__table__)  # type: ignore[attr-defined]
_EVENT: TypeAdapter[EventBase] = TypeAdapter(JobRequest | HostRequest)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request as it goes out."""

    position: int
    key: str
    subject: str
    event: EventBase
    envelope: Envelope


def add_request(
    session: Session, event: RequestBase | HostDrainRequested | HostForgetRequested
) -> None:
    """Write a request into the caller's transaction; call `wake_outbox` after its commit."""
    key = f"job:{event.job}" if isinstance(event, RequestBase) else f"host:{event.host}"
    body = event.model_dump(mode="json")
    # Straight into the table: a burst of submits is bound by what an object of the session costs.
    session.connection().execute(
        _INSERT,
        [
            {
                "id": new_message_id(),
                "key": key,
                "req_n": event.req_n,
                "type": body["type"],
                "body": body,
                "at": event.at,
            }
        ],
    )


def unsent(epoch: str) -> ColumnElement[bool]:
    """Match requests to publish in this life of the stream.

    New ones; and of those published into an earlier life all that the scheduler may not have: unanswered requests,
    and every request of a job that has not ended.
    """
    ended = [status.value for status in TERMINAL]
    open_jobs = select("job:" + col(JobRow.uuid)).where(
        or_(
            col(JobRow.status).not_in(ended),
            col(JobRow.answered_n) < col(JobRow.req_n),
        )
    )
    known_hosts = select("host:" + col(HostRow.id)).where(col(HostRow.forgotten).is_(False))
    return or_(
        col(RequestRow.epoch).is_(None),
        and_(
            col(RequestRow.epoch) != epoch,
            or_(col(RequestRow.key).in_(open_jobs), col(RequestRow.key).in_(known_hosts)),
        ),
    )


def next_batch(session: Session, epoch: str, limit: int = OUTBOX_BATCH) -> list[Outgoing]:
    """Return the next requests to publish, in order."""
    new = col(RequestRow.epoch).is_(None)
    wanted = unsent(epoch) if _has_other_lives(session, epoch) else new
    rows = session.execute(
        select(RequestRow).where(wanted).order_by(col(RequestRow.position)).limit(limit)
    ).scalars()
    return [outgoing(row) for row in rows]


def _has_other_lives(session: Session, epoch: str) -> bool:
    """Tell whether anything was confirmed in another life of the stream.

    Nearly never: this is looked up in an index after each submit, while to find which of those must go out again
    reads every request there is.
    """
    other = col(RequestRow.epoch)
    ranges = (
        select(col(RequestRow.position)).where(r).limit(1) for r in (other < epoch, other > epoch)
    )
    return any(session.execute(one).first() is not None for one in ranges)


def depth(session: Session) -> int:
    """Return how many requests were never confirmed by the broker."""
    statement = select(func.count()).select_from(RequestRow).where(col(RequestRow.epoch).is_(None))
    return int(session.execute(statement).scalar_one())


def confirm(session: Session, positions: list[int], epoch: str) -> None:
    """Note that these are in the stream of `epoch`."""
    session.execute(
        update(RequestRow).where(col(RequestRow.position).in_(positions)).values(epoch=epoch)
    )


class OutboxRelay:
    """One task that publishes; `wake` after a commit makes it look at once."""

    def __init__(self, services: ApiServices) -> None:
        """Use the services' main database and bus."""
        self._services = services
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look for requests now; called from the event loop."""
        self._wake.set()

    async def run(self) -> None:
        """Publish until cancelled. A broker that is away is tried again twice a second."""
        while True:
            self._wake.clear()
            try:
                done = await self.publish_once()
                if done:
                    self._services.outbox_stuck = None
            except (BusError, RuntimeError) as error:
                LOG.warning("outbox_waits", error=str(error)[:200])
                done = False
            if done:
                await self._pause(IDLE_SECONDS)
            else:
                await asyncio.sleep(RETRY_SECONDS)

    async def publish_once(self) -> bool:
        """Publish all that waits. Returns False when something could not be sent.

        Raises BusUnavailable, StreamMissing, DatabaseBusy.
        """
        bus = self._services.link.bus
        epoch = (await bus.stream_state(STREAM)).epoch
        main = self._services.main
        while True:
            batch = await main.read(lambda session: next_batch(session, epoch))
            if not batch:
                return True
            acks = await bus.publish_many(
                [(o.subject, o.event, o.envelope, o.envelope.id) for o in batch]
            )
            sent, failed = _settled(batch, acks)
            if sent:
                await main.write(lambda session, sent=sent: confirm(session, sent, epoch))  # type: ignore[misc]
            if failed is not None:
                if isinstance(failed, PublishTimeout) and bus.is_connected:
                    self._services.outbox_stuck = f"stream {STREAM} does not acknowledge"
                LOG.warning("outbox_refused", error=str(failed)[:200])
                return False

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()


def _settled(batch: list[Outgoing], acks: Sequence[object]) -> tuple[list[int], BusError | None]:
    """Split into what may be confirmed and the first failure.

    Behind a failed request no later one of the same job is confirmed: it is sent again behind it, so that the stream
    holds each job's requests in order at least once.
    """
    sent: list[int] = []
    blocked: set[str] = set()
    failed: BusError | None = None
    for outgoing, ack in zip(batch, acks, strict=True):
        if isinstance(ack, MessageTooLarge):
            LOG.error("request_too_large", key=outgoing.key)
        if isinstance(ack, BusError):
            failed = failed or ack
            blocked.add(outgoing.key)
        elif outgoing.key not in blocked:
            sent.append(outgoing.position)
    return sent, failed


def outgoing(row: RequestRow) -> Outgoing:
    """Return a stored request as it is published."""
    kind, _, name = row.key.partition(":")
    subject = subjects.request(name) if kind == "job" else subjects.host_request(name)
    assert row.position is not None
    return Outgoing(
        row.position,
        row.key,
        subject,
        _EVENT.validate_python(row.body),
        Envelope(row.id, SOURCE, row.at),
    )
