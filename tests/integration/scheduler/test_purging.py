"""REQUESTS keeps what the scheduler has not committed, and of the rest what there is room for."""

from __future__ import annotations

import pytest

from services.scheduler import loop, purging, store
from services.scheduler.main import open_database
from services.scheduler.purging import purge_applied
from services.scheduler.store import Position
from shared.events.requests import JobPriorityRequested
from tests.conftest import BusFor, RunningBroker, eventually
from tests.integration.scheduler.rig import Feed, Scheduler, Users

pytestmark = pytest.mark.integration


async def test_what_is_applied_leaves_the_stream_and_the_rest_is_applied_after_a_restart(
    streams: None, broker: RunningBroker, bus_for: BusFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PURGE_SECONDS", 0.1)
    monkeypatch.setattr(purging, "removable", lambda applied, *_: applied)
    bus = await bus_for("scheduler")
    users, feed = Users(await bus_for("api")), Feed(await bus_for("api"))
    first = await Scheduler(bus, broker.settings).ready()
    await users.submit(1)
    await users.submit(2)

    async def emptied() -> bool:
        return (await bus.stream_state("REQUESTS")).messages == 0

    await eventually(lambda: feed.status(2))
    await eventually(emptied)
    assert (await bus.stream_state("REQUESTS")).last_seq == 2
    await first.stop()
    await users.ask(1, JobPriorityRequested, priority=90)
    assert (await bus.stream_state("REQUESTS")).messages == 1
    second = await Scheduler(bus, broker.settings).ready()

    async def applied() -> bool:
        state = await feed.latest(1)
        return state is not None and (state.req_n, state.priority) == (2, 90)

    await eventually(applied)
    await eventually(emptied)
    await second.stop()


async def test_nothing_beyond_the_committed_position_is_removed(
    streams: None, broker: RunningBroker, bus_for: BusFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "removable", lambda applied, *_: applied)
    bus = await bus_for("scheduler")
    users = Users(await bus_for("api"))
    for number in range(1, 5):
        await users.submit(number)
    epoch = (await bus.stream_state("REQUESTS")).epoch
    database = open_database(broker.settings)
    try:
        for stored, left in (
            (Position("REQUESTS", "", 0), 4),
            (Position("REQUESTS", "another life", 4), 4),
            (Position("REQUESTS", epoch, 2), 2),
            (Position("REQUESTS", epoch, 2), 2),
            (Position("REQUESTS", epoch, 4), 0),
        ):
            await database.write(lambda s, at=stored: store.save_position(s, at))  # type: ignore[misc]
            await purge_applied(bus, database)
            state = await bus.stream_state("REQUESTS")
            assert (state.messages, state.last_seq) == (left, 4), stored
    finally:
        database.close()


async def test_what_is_applied_stays_while_there_is_room(
    streams: None, broker: RunningBroker, bus_for: BusFor
) -> None:
    bus = await bus_for("scheduler")
    users = Users(await bus_for("api"))
    for number in range(1, 5):
        await users.submit(number)
    epoch = (await bus.stream_state("REQUESTS")).epoch
    database = open_database(broker.settings)
    try:
        await database.write(lambda s: store.save_position(s, Position("REQUESTS", epoch, 4)))
        assert await purge_applied(bus, database) == 0
        assert (await bus.stream_state("REQUESTS")).messages == 4
    finally:
        database.close()
