"""Killed anywhere, the scheduler goes on from SQL: nothing is lost, nothing happens twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.scheduler import leader
from services.scheduler.core.inputs import RequestArrived, Tick
from services.scheduler.desk import Desk
from services.scheduler.leader import LeadershipLost
from services.scheduler.main import open_database
from shared.bus import ensure_streams
from shared.clock import SystemClock
from shared.events.requests import JobCancelRequested
from tests.conftest import TEST_STORE_MIB, BusFor, RunningBroker, eventually
from tests.integration.scheduler.rig import (
    FAST,
    CrashAt,
    Feed,
    HostActor,
    Scheduler,
    Users,
    rows,
)
from tests.unit.scheduler.build import a_submit, job_id

pytestmark = pytest.mark.integration
POINTS = ("before_commit", "after_commit", "before_mark_published", "after_publish", "after_write")
JOBS = (1, 2, 3)


@contextlib.asynccontextmanager
async def alive(box: HostActor) -> AsyncIterator[None]:
    task = asyncio.create_task(box.live())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("point", "number"),
    [*((point, 1) for point in POINTS), ("before_commit", 4), ("after_commit", 4)],
)
async def test_a_crash_at_any_point_changes_nothing_about_the_end(
    point: str, number: int, streams: None, broker: RunningBroker, bus_for: BusFor
) -> None:
    users, feed = Users(await bus_for("api")), Feed(await bus_for("api"))
    box = HostActor(await bus_for("agent", "box1"), "box1")
    bus = await bus_for("scheduler")
    doomed = await Scheduler(bus, broker.settings, crash=CrashAt(point, number)).ready()
    await users.submit(1)
    await users.submit(2, depends_on=[job_id(1)])
    await users.submit(3, priority=90)
    async with alive(box):
        await doomed.crashed()
        # A thread of this process holds the lead in the dead scheduler's name.
        assert leader.this_process() == rows(broker.home, "SELECT holder FROM leader")[0][0]
        again = await Scheduler(bus, broker.settings).ready()
        for one in JOBS:
            await eventually(lambda one=one: _is(feed, one, "COMPLETED"), timeout=15)
        await eventually(lambda: rows(broker.home, "SELECT count(*) FROM desired") == [(0,)])
        await eventually(lambda: _is_published(broker.home))
        await again.stop()
    _check_books(broker.home)
    for one in JOBS:
        mine = [(c, s) for c, s in await feed.events() if s.job == job_id(one)]
        numbers = [s.job_n for _, s in mine]
        assert sorted(set(numbers)) == list(range(1, max(numbers) + 1))
        once = {s.job_n: c for c, s in mine}
        assert list(once.values()).count("assigned") == 1
        assert list(once.values()).count("completed") == 1
        assert mine[-1][1].attempt == 1


async def test_wiped_broker_is_filled_again_and_unfinished_jobs_go_on(
    streams: None, broker: RunningBroker, bus_for: BusFor
) -> None:
    box = HostActor(await bus_for("agent", "box1"), "box1")
    box.finish = False
    users, feed = Users(await bus_for("api")), Feed(await bus_for("api"))
    bus = await bus_for("scheduler")
    scheduler = await Scheduler(bus, broker.settings).ready()
    await users.submit(1)
    await users.submit(2)
    await box.beat()
    await eventually(lambda: _reconciled(box))
    await eventually(lambda: _is(feed, 1, "RUNNING"))
    before = [(c, s.job_n) for c, s in await feed.events() if s.job == job_id(1)]
    first_epoch = (await box.beat()).ctl_epoch
    await scheduler.stop()
    broker.stop()
    broker.wipe()
    await broker.start()
    await eventually(lambda: bus.is_connected and box.bus.is_connected and users.bus.is_connected)
    await ensure_streams(bus, TEST_STORE_MIB)

    again = await Scheduler(bus, broker.settings).ready()
    await eventually(lambda: _is(feed, 1, "RUNNING"))
    after = [(c, s.job_n) for c, s in await feed.events() if s.job == job_id(1)]
    assert after[: len(before)] == before
    await eventually(lambda: _new_epoch(box, first_epoch))
    assert f"box1.{job_id(1)}" in await box.bus.control().entries("box1")
    box.finish = True
    async with alive(box):
        for one in (1, 2):
            await eventually(lambda one=one: _is(feed, one, "COMPLETED"))
    await eventually(lambda: _is_published(broker.home))
    await again.stop()
    _check_books(broker.home)


async def test_wiped_under_a_running_scheduler(
    streams: None, broker: RunningBroker, bus_for: BusFor
) -> None:
    box = HostActor(await bus_for("agent", "box1"), "box1")
    users, feed = Users(await bus_for("api")), Feed(await bus_for("api"))
    bus = await bus_for("scheduler")
    scheduler = await Scheduler(bus, broker.settings).ready()
    await users.submit(1)
    await eventually(lambda: _is(feed, 1, "PENDING"))
    broker.kill()
    broker.wipe()
    await broker.start()
    await eventually(lambda: _is_again(feed, 1, "PENDING"), timeout=20)
    async with alive(box):
        await eventually(lambda: _is(feed, 1, "COMPLETED"), timeout=15)
    await eventually(lambda: _is_published(broker.home))
    await scheduler.stop()
    _check_books(broker.home)


async def test_broker_restart_is_not_noticed(
    streams: None, broker: RunningBroker, bus_for: BusFor
) -> None:
    box = HostActor(await bus_for("agent", "box1"), "box1")
    users, feed = Users(await bus_for("api")), Feed(await bus_for("api"))
    scheduler = await Scheduler(await bus_for("scheduler"), broker.settings).ready()
    await users.submit(1)
    await eventually(lambda: _is(feed, 1, "PENDING"))
    await broker.restart()
    async with alive(box):
        await eventually(lambda: _is_again(feed, 1, "COMPLETED"), timeout=20)
    await scheduler.stop()
    changes = [c for c, s in await feed.events() if s.job == job_id(1) and c != "updated"]
    assert changes == ["queued", "assigned", "running", "completed"]


async def test_a_second_scheduler_waits_and_the_first_is_fenced(
    home: Path, streams: None, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "is_dead", lambda holder, local: False)
    database = open_database(broker.settings)
    other = "boot/elsewhere/1/1"
    lead = await database.write(lambda s: leader.acquire(s, "boot/here/1/1", 1000.0, True))
    assert lead is not None
    assert await database.write(lambda s: leader.acquire(s, other, 1001.0, True)) is None
    clock = SystemClock()
    desk = await Desk.open(database, clock, lead, FAST, lambda _: None)
    monkeypatch.setattr(leader, "unix", lambda: 1002.0)
    await desk.commit([RequestArrived(a_submit(1))])
    late = 1002.0 + leader.TTL_SECONDS + 1
    taken = await database.write(lambda s: leader.acquire(s, other, late, True))
    assert taken is not None
    assert taken.epoch == lead.epoch + 1
    cancel = JobCancelRequested(job=job_id(1), req_n=2, at=clock.now())
    with pytest.raises(LeadershipLost):
        await desk.commit([RequestArrived(cancel)])
    assert desk.state.jobs[job_id(1)].state.req_n == 1, "nothing changed in memory either"
    await desk.commit([Tick()])
    assert rows(home, "SELECT count(*) FROM outbox") == [(1,)]
    await asyncio.to_thread(database.close)


async def test_the_process_killed_and_started_again_goes_on(
    streams: None, broker: RunningBroker, bus_for: BusFor
) -> None:
    users, feed = Users(await bus_for("api")), Feed(await bus_for("api"))
    box = HostActor(await bus_for("agent", "box1"), "box1")
    box.finish = False
    first = _spawn(broker)
    async with alive(box):
        await users.submit(1)
        await eventually(lambda: _is(feed, 1, "RUNNING"), timeout=20)
        first.kill()
        first.wait(60)
        await users.submit(2)
        box.finish = True
        second = _spawn(broker)
        for one in (1, 2):
            await eventually(lambda one=one: _is(feed, one, "COMPLETED"), timeout=20)
        assert (broker.home / "run" / "scheduler.json").exists()
        await eventually(lambda: _is_published(broker.home))
        second.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(second.wait, 60) == 0
    assert not (broker.home / "run" / "scheduler.json").exists()
    assert [e.attempt for e in box.seen] == [1, 1]
    _check_books(broker.home)


def _spawn(broker: RunningBroker) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "TRAINYARD_HOME": str(broker.home),
        "TRAINYARD_NATS_URL": broker.url,
        "TRAINYARD_NATS_STORE_MIB": str(TEST_STORE_MIB),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "services.scheduler"], env=environment, stderr=subprocess.DEVNULL
    )


def _is_published(home: Path) -> bool:
    """Tell whether the broker has every event, and the books say so: that is noted after it was sent."""
    return rows(home, "SELECT count(*) FROM outbox WHERE published IS NULL") == [(0,)]


def _check_books(home: Path) -> None:
    """Every event was published, numbers are dense, each job ended once, each attempt was closed."""
    assert _is_published(home)
    for job, count, highest in rows(
        home, "SELECT job, count(*), max(job_n) FROM outbox GROUP BY job"
    ):
        assert count == highest, job
    ended = "SELECT count(*) FROM outbox WHERE event LIKE '%job.completed.v1%' GROUP BY job"
    assert {n for (n,) in rows(home, ended)} == {1}
    assert {s for (s,) in rows(home, "SELECT status FROM attempts")} == {"ended"}


async def _is(feed: Feed, number: int, status: str) -> bool:
    return await feed.status(number) == status


async def _is_again(feed: Feed, number: int, status: str) -> bool:
    """As `_is`, while the broker comes and goes."""
    with contextlib.suppress(Exception):
        return await feed.status(number) == status
    return False


async def _reconciled(box: HostActor) -> bool:
    await box.reconcile()
    return bool(box.open)


async def _new_epoch(box: HostActor, old: str) -> bool:
    return (await box.beat()).ctl_epoch not in ("", old)
