"""A scheduler whose database is older than the streams: it goes on where the lost one stood, with real parts around it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from services.scheduler import gate, restored
from services.scheduler.store import Position
from shared.events.requests import JobCancelRequested, JobPriorityRequested
from shared.jobs.lifecycle import JobState
from shared.restored import PENDING
from tests.conftest import BusFor, RunningBroker, eventually
from tests.integration.scheduler.rig import Feed, HostActor, Scheduler, Users, rows
from tests.unit.scheduler.build import job_id
from trainyard.backup.cut import copy, cut

pytestmark = pytest.mark.integration


def save(home: Path) -> Path:
    target = home / f"saved-{time.monotonic_ns()}.db"
    with cut([home / "scheduler.db"]) as readers:
        copy(readers[home / "scheduler.db"], target)
    return target


def put_back(home: Path, saved: Path, *, marked: bool = True) -> None:
    for suffix in ("", "-wal", "-shm"):
        (home / f"scheduler.db{suffix}").unlink(missing_ok=True)
    shutil.copyfile(saved, home / "scheduler.db")
    if marked:
        with contextlib.closing(sqlite3.connect(home / "scheduler.db")) as database:
            database.execute("INSERT INTO positions VALUES ('restored', 'r1', ?)", (PENDING,))
            database.commit()


class Place:
    """One scheduler, one host with two GPUs that keeps what it is given, and users."""

    def __init__(self, bus_for: BusFor, broker: RunningBroker) -> None:
        self.bus_for, self.broker = bus_for, broker

    async def begin(self) -> Place:
        self.bus = await self.bus_for("scheduler")
        api = await self.bus_for("api")
        self.users, self.feed = Users(api), Feed(api)
        self.host = HostActor(await self.bus_for("agent", "h1"), "h1", 2)
        self.host.finish = False
        self.living = asyncio.create_task(self.host.live())
        self.scheduler = await Scheduler(self.bus, self.broker.settings).ready()
        return self

    async def end(self) -> None:
        self.living.cancel()
        await self.scheduler.stop()

    async def again(self) -> None:
        self.scheduler = await Scheduler(self.bus, self.broker.settings).ready()

    async def runs(self, number: int) -> None:
        async def there() -> bool:
            return await self.feed.status(number) == "RUNNING"

        await eventually(there, 20)

    async def newest(self, *numbers: int) -> dict[int, JobState]:
        found = {n: await self.feed.latest(n) for n in numbers}
        return {n: s for n, s in found.items() if s is not None}


async def lived(bus_for: BusFor, broker: RunningBroker, home: Path) -> tuple[Place, Path]:
    """Job 1 runs at the backup; 2 is submitted and runs, 3 waits and is cancelled, 4 waits, all after it."""
    place = await Place(bus_for, broker).begin()
    await place.users.submit(1)
    await place.runs(1)
    saved = save(home)
    await place.users.submit(2)
    await place.runs(2)
    await place.users.submit(3)
    await place.users.ask(3, JobCancelRequested)
    await place.users.submit(4)
    await place.users.ask(4, JobPriorityRequested, priority=77)

    async def told() -> bool:
        found = await place.newest(3, 4)
        return len(found) == 2 and found[3].status == "CANCELLED" and found[4].priority == 77

    await eventually(told, 20)
    await place.scheduler.stop()
    return place, saved


async def test_everything_since_the_backup_is_there_and_nothing_is_decided_twice(
    streams: None, broker: RunningBroker, bus_for: BusFor, home: Path
) -> None:
    place, saved = await lived(bus_for, broker, home)
    before = await place.newest(1, 2, 3, 4)
    put_back(home, saved)
    await place.again()
    stored = dict(rows(home, "SELECT id, status FROM jobs"))
    assert stored == {job_id(n): before[n].status.value for n in before}
    assert rows(home, "SELECT epoch, last_seq > 0 FROM positions WHERE name = 'restored'") == [
        ("r1", 1)
    ]
    # Both runs are adopted: the host is told nothing new, and ends them when it wants to.
    place.host.finish, place.host.restored = True, "r1"

    async def over() -> bool:
        found = await place.newest(1, 2, 4)
        return all(state.status == "COMPLETED" for state in found.values())

    await eventually(over, 30)
    after = await place.newest(1, 2, 3, 4)
    assert [after[n].attempt for n in (1, 2, 3, 4)] == [1, 1, 0, 1]
    assert after[3] == before[3]
    events = [(state.job, state.job_n) for _, state in await place.feed.events() if state.job]
    assert len(events) == len(set(events)), "an event number was used twice"
    started = [entry.job for entry in place.host.seen]
    assert len(started) == len(set(started)) == 3
    await place.end()


async def test_the_same_without_the_mark_uses_numbers_twice(
    streams: None, broker: RunningBroker, bus_for: BusFor, home: Path
) -> None:
    """What the mark is for, and that the test above would see it missing."""
    place, saved = await lived(bus_for, broker, home)
    put_back(home, saved, marked=False)
    await place.again()

    async def doubled() -> bool:
        events = [(state.job, state.job_n) for _, state in await place.feed.events()]
        return len(events) != len(set(events))

    await eventually(doubled, 20)
    await place.end()


async def test_with_the_broker_lost_too_no_attempt_number_is_given_twice(
    streams: None,
    broker: RunningBroker,
    bus_for: BusFor,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = await Place(bus_for, broker).begin()
    await place.users.submit(1)
    await place.runs(1)
    saved = save(home)
    await place.scheduler.stop()
    place.living.cancel()
    broker.stop()
    broker.wipe()
    await broker.start()
    # Meanwhile attempt 1 had ended and attempt 3 was given to this host, of which only the host knows.
    place.host.open = {job_id(1): 3}
    put_back(home, saved)
    monkeypatch.setattr(gate, "WAIT_SECONDS", 600.0)  # it does not go on without them
    await place.again()
    await asyncio.sleep(1.5)
    place.living = asyncio.create_task(place.host.live())

    async def adopted() -> bool:
        state = await place.feed.latest(1)
        return state is not None and state.attempt == 3

    await eventually(adopted, 20)
    await place.users.submit(2)
    reply = await place.host.beat()
    assert reply.restored == "r1"
    await asyncio.sleep(1.0)
    waiting = await place.feed.latest(2)
    assert waiting is None or waiting.attempt == 0, (
        "nothing is placed before the hosts have told all they know"
    )
    place.host.restored = reply.restored
    await place.runs(2)
    await place.host._exit(job_id(1), 3, outcome="completed")

    async def over() -> bool:
        return await place.feed.status(1) == "COMPLETED"

    await eventually(over, 20)
    await place.end()


async def test_streams_are_read_whole_however_many_messages_they_hold(
    streams: None, broker: RunningBroker, bus_for: BusFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = Users(await bus_for("api"))
    for number in range(300):
        await users.submit(number)
    monkeypatch.setattr(restored, "PAGE", 64)  # fewer than the reader takes from the broker at once
    evidence = await restored.gather(await bus_for("scheduler"), Position("RUNS", "", 0))
    assert [request.job for request in evidence.requests] == [job_id(n) for n in range(300)]
    assert evidence.told is None
