"""The protocol that every service follows, with real parts: outbox in SQL, stream, position in SQL.

The broker is killed again and again and once loses its whole store; every row arrives exactly once in effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import Session

from shared.bus import (
    Bus,
    BusError,
    BusMessage,
    BusUnavailable,
    PubAck,
    Reader,
    StreamReset,
    ensure_streams,
)
from shared.db import Database
from shared.events import Envelope, decode
from shared.events.run import RunCollected
from shared.ids import new_message_id
from tests.conftest import TEST_STORE_MIB, eventually

pytestmark = pytest.mark.integration
SUBJECT = "run.box1.job.1"
TOTAL = 1_200


def make_tables(session: Session) -> None:
    for statement in (
        "CREATE TABLE outbox (n INTEGER PRIMARY KEY, id TEXT, epoch TEXT)",
        "CREATE TABLE applied (n INTEGER PRIMARY KEY)",
        "CREATE TABLE position (epoch TEXT, seq INTEGER)",
        "INSERT INTO position VALUES (NULL, 0)",
    ):
        session.execute(text(statement))


def fill_outbox(session: Session, first: int, count: int) -> None:
    for n in range(first, first + count):
        row = {"n": n, "i": new_message_id()}
        session.execute(text("INSERT INTO outbox VALUES (:n, :i, NULL)"), row)


def unsent(session: Session, epoch: str) -> list[tuple[int, str]]:
    statement = text("SELECT n, id FROM outbox WHERE epoch IS NOT :e ORDER BY n LIMIT 100")
    return [(n, i) for n, i in session.execute(statement, {"e": epoch})]


def mark_sent(session: Session, epoch: str, done: list[int]) -> None:
    for n in done:
        session.execute(text("UPDATE outbox SET epoch = :e WHERE n = :n"), {"e": epoch, "n": n})


def get_position(session: Session) -> tuple[str | None, int]:
    epoch, seq = session.execute(text("SELECT epoch, seq FROM position")).one()
    return epoch, seq


def set_position(session: Session, epoch: str, seq: int) -> None:
    session.execute(text("UPDATE position SET epoch = :e, seq = :s"), {"e": epoch, "s": seq})


def apply(session: Session, messages: list[BusMessage]) -> None:
    for message in messages:
        n = decode(message.headers, message.data)[1].seq  # type: ignore[union-attr]
        last = session.execute(text("SELECT coalesce(max(n), 0) FROM applied")).scalar() or 0
        # Its own number tells a copy from news; a stream sequence never does.
        if n == last + 1:
            session.execute(text("INSERT INTO applied VALUES (:n)"), {"n": n})
    set_position(session, messages[-1].epoch, messages[-1].seq)


def applied(session: Session) -> list[int]:
    return list(session.execute(text("SELECT n FROM applied ORDER BY n")).scalars())


async def relay_once(bus: Bus, database: Database) -> None:
    """Publish, in order, what has not been published in the stream's present epoch."""
    epoch = (await bus.stream_state("RUNS")).epoch
    rows = await database.read(functools.partial(unsent, epoch=epoch))
    now = datetime.now(UTC)
    acks = await bus.publish_many(
        [(SUBJECT, RunCollected(seq=n, t=0.0), Envelope(i, "/test", now), i) for n, i in rows]
    )
    done = [n for (n, _), ack in zip(rows, acks, strict=True) if isinstance(ack, PubAck)]
    # The epoch of before: had the stream been replaced meanwhile, the next round sends these again.
    await database.write(functools.partial(mark_sent, epoch=epoch, done=done))
    if not rows:
        await asyncio.sleep(0.02)


async def relay(bus: Bus, database: Database) -> None:
    while True:
        try:
            await relay_once(bus, database)
        except BusError:
            await asyncio.sleep(0.02)


async def follow(reader: Reader, database: Database) -> None:
    """Apply what is read, with the position in the same transaction."""
    while True:
        with contextlib.suppress(BusUnavailable):
            messages = await reader.fetch(64, timeout=0.5)
            if messages:
                await database.write(functools.partial(apply, messages=messages))


async def project(bus: Bus, database: Database) -> None:
    while True:
        epoch, seq = await database.read(get_position)
        reader = await bus.reader("RUNS", after=seq, epoch=epoch)
        try:
            await follow(reader, database)
        except StreamReset as reset:
            await database.write(functools.partial(set_position, epoch=reset.epoch, seq=0))
        except BusError:
            await asyncio.sleep(0.02)
        finally:
            await reader.close()


async def test_every_row_arrives_once_over_crashes_and_a_wiped_store(
    broker, bus_for, streams, tmp_path: Path
) -> None:
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    database = Database(f"sqlite:///{tmp_path / 'own.db'}", synchronous="NORMAL")
    await database.write(make_tables)
    api.on_reconnect(functools.partial(ensure_streams, api, store_mib=TEST_STORE_MIB))
    tasks = [
        asyncio.create_task(relay(agent, database)),
        asyncio.create_task(project(api, database)),
    ]

    def arrived(count: int) -> bool:
        return len(database.read_now(applied)) >= count

    for step in range(4):
        first = step * TOTAL // 4 + 1
        await database.write(functools.partial(fill_outbox, first=first, count=TOTAL // 4))
        await eventually(functools.partial(arrived, first + 50), timeout=30)
        broker.kill()
        if step == 2:
            broker.wipe()
        await broker.start()
    await eventually(functools.partial(arrived, TOTAL), timeout=30)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await database.read(applied) == list(range(1, TOTAL + 1))
    database.close()
