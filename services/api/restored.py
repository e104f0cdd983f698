"""After a restore: takes back from REQUESTS what users asked for since the backup, before anybody is served.

A new request would else get a number that the stream already holds for another one, and the scheduler would take it
for a repetition. Where the broker's store was lost too there is nothing to take back.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlmodel import Session, col

from services.api.db.positions import load_position, save_position
from services.api.db.tables import HostRow, JobDependencyRow, JobRow, JobSecretRow, RequestRow
from services.api.deps import ApiServices
from services.api.jobs.forget import drop_secrets
from services.api.projections.main import Item
from shared.bus import Bus, StreamReset
from shared.bus.credentials import bus_config
from shared.bus.port import BusError, BusMessage, StreamMissing
from shared.events import EventMalformed, decode
from shared.events.requests import (
    HostDrainRequested,
    HostForgetRequested,
    JobDeleteRequested,
    JobPriorityRequested,
    JobSubmitRequested,
    RequestBase,
)
from shared.log import logger
from shared.restored import PENDING, RESTORED
from shared.specs import SpecInvalid, dependencies, spec_from_config

LOG = logger("api.restored")
STREAM = "REQUESTS"
PAGE = 256
PAGE_SECONDS = 10.0
BROKER_SECONDS = 50.0
"""How long the broker may take to be there; the api then ends, and its supervisor starts it again."""


class NotHealed(RuntimeError):
    """The broker could not be read; nothing was changed, and the next start tries again."""


@dataclass(slots=True)
class Taken:
    """What was taken back."""

    requests: Counter[str] = field(default_factory=Counter)
    """By type."""
    jobs: list[str] = field(default_factory=list)
    """Jobs submitted after the backup."""
    without_secrets: list[str] = field(default_factory=list)
    """Those of them whose secrets are gone: they were never on the bus."""


def is_pending(session: Session) -> bool:
    """Tell whether this database was restored and has not taken back anything yet."""
    restore = load_position(session, RESTORED)
    return restore.epoch is not None and restore.last_seq == PENDING


async def heal(services: ApiServices) -> Taken | None:
    """Take back what the stream holds, once after a restore; None where nothing was restored. Raises NotHealed."""
    if not services.main.read_now(is_pending):
        return None
    bus = await _connected(services)
    try:
        messages, epoch = await _read_all(bus)
    except (BusError, StreamReset) as error:
        raise NotHealed(f"the stream {STREAM} could not be read: {error}") from error
    finally:
        await bus.close()
    taken = await services.main.write(lambda session: take_back(session, messages, epoch))
    LOG.warning(
        "restored",
        taken_back=dict(taken.requests),
        jobs=taken.jobs[:100],
        without_secrets=taken.without_secrets[:100],
    )
    return taken


def take_back(session: Session, messages: Sequence[BusMessage], epoch: str) -> Taken:
    """Store every request that this database lacks, and note that it is done. Repeating it changes nothing."""
    taken = Taken()
    for message in messages:
        try:
            envelope, event = decode(message.headers, message.data)
        except EventMalformed as error:
            LOG.warning("request_unreadable", seq=message.seq, error=str(error)[:200])
            continue
        _take(session, (message, envelope, event), epoch, taken)
    _find_without_secrets(session, taken)
    restore = load_position(session, RESTORED)
    save_position(session, RESTORED, restore.epoch or "", int(time.time()))
    return taken


def _take(session: Session, item: Item, epoch: str, taken: Taken) -> None:
    message, envelope, event = item
    if isinstance(event, RequestBase):
        key, name = f"job:{event.job}", event.job
    elif isinstance(event, HostDrainRequested | HostForgetRequested):
        key, name = f"host:{event.host}", event.host
    else:
        return
    if message.subject.rpartition(".")[2] != name:
        return
    known = select(RequestRow).where(
        col(RequestRow.key) == key, col(RequestRow.req_n) == event.req_n
    )
    row = session.execute(known).scalar_one_or_none()
    if row is not None:
        row.epoch = epoch
        return
    body = event.model_dump(mode="json")
    session.add(
        RequestRow(
            id=envelope.id, key=key, req_n=event.req_n, type=body["type"], body=body, at=event.at,
            epoch=epoch,
        )
    )  # fmt: skip
    taken.requests[body["type"]] += 1
    if isinstance(event, RequestBase):
        _apply(session, event, taken)
    else:
        _apply_to_host(session, event)
    session.flush()


def _apply(session: Session, event: RequestBase, taken: Taken) -> None:
    row = session.get(JobRow, event.job)
    if isinstance(event, JobSubmitRequested) and (row is None or not row.config):
        row = _submitted(session, event, row)
        taken.jobs.append(event.job)
    if row is None:
        # Its submit has left the stream: the row comes with the first event of the scheduler.
        LOG.warning("request_of_unknown_job", job=event.job, req_n=event.req_n)
        return
    row.req_n = max(row.req_n, event.req_n)
    if isinstance(event, JobDeleteRequested):
        row.deleted_at = row.deleted_at or event.at
        drop_secrets(session, event.job)
    elif isinstance(event, JobPriorityRequested):
        row.priority = event.priority
        row.config = {**row.config, "priority": event.priority}


def _submitted(session: Session, event: JobSubmitRequested, row: JobRow | None) -> JobRow:
    """Return the row as the submit had made it, its values of the scheduler kept where there are any."""
    config = dict(event.config)
    needs: tuple[str, ...] = ()
    try:
        needs = dependencies(spec_from_config(config))
    except SpecInvalid as error:
        LOG.warning("config_unreadable", job=event.job, error=str(error)[:200])
    if row is None:
        row = JobRow(uuid=event.job, name=event.name, algorithm="", config={}, created_at=event.at)
        session.add(row)
    row.name, row.config, row.created_at = event.name, config, event.at
    row.description = _text(config.get("description"))
    row.algorithm = str(config.get("algorithm", ""))
    row.tags = [str(tag) for tag in config.get("tags") or ()]
    row.depends_on = list(needs)
    row.priority = int(config.get("priority", row.priority))
    row.idempotency_key, row.body_hash = event.idempotency_key, event.body_hash
    for job in needs:
        if session.get(JobDependencyRow, (event.job, job)) is None:
            session.add(JobDependencyRow(job=event.job, needs=job))
    return row


def _apply_to_host(session: Session, event: HostDrainRequested | HostForgetRequested) -> None:
    row = session.get(HostRow, event.host)
    if row is None:
        row = HostRow(id=event.host, label=event.host)
        session.add(row)
    row.req_n = max(row.req_n, event.req_n)
    if isinstance(event, HostDrainRequested):
        row.drained = event.drained
    else:
        row.forgotten = True


def _find_without_secrets(session: Session, taken: Taken) -> None:
    """Name the jobs that were submitted with secrets; the values lay only in the database that was lost."""
    for job in taken.jobs:
        submits = select(RequestRow).where(col(RequestRow.key) == f"job:{job}")
        names = {
            n for r in session.execute(submits).scalars() for n in r.body.get("secret_names") or ()
        }
        has = select(col(JobSecretRow.name)).where(col(JobSecretRow.job) == job)
        if names - set(session.execute(has).scalars()):
            taken.without_secrets.append(job)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


async def _connected(services: ApiServices) -> Bus:
    deadline = time.monotonic() + BROKER_SECONDS
    while True:
        try:
            return await Bus.connect(bus_config(services.settings, "api"), timeout=5)
        except (BusError, OSError) as error:
            if time.monotonic() > deadline:
                raise NotHealed(f"the broker does not answer: {error}") from error
        await asyncio.sleep(0.3)


async def _read_all(bus: Bus) -> tuple[list[BusMessage], str]:
    """Return every request that the stream holds now, and its epoch; nothing where there is no stream."""
    try:
        state = await bus.stream_state(STREAM)
    except StreamMissing:
        return [], ""
    found: list[BusMessage] = []
    if not state.messages:
        return found, state.epoch
    reader = await bus.reader(STREAM, after=0, epoch=state.epoch)
    try:
        while not found or found[-1].seq < state.last_seq:
            page = await reader.fetch(PAGE, timeout=PAGE_SECONDS)
            if not page:
                raise NotHealed(f"{STREAM} gave nothing for {PAGE_SECONDS:g} s")
            found += page
    finally:
        await reader.close()
    return found, state.epoch


__all__ = ["NotHealed", "Taken", "heal", "is_pending", "take_back"]
