"""The scheduler between real requests and real control keys: order, completeness, leases."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from services.scheduler import leader
from services.scheduler.core.state import Limits
from shared.events import subjects
from shared.events.calls import ControlEntry
from shared.events.requests import (
    HostDrainRequested,
    HostForgetRequested,
    JobCancelRequested,
    JobPauseRequested,
    JobResumeRequested,
)
from shared.events.run import RunCheckpoint
from shared.jobs.reasons import Reason
from tests.conftest import BusFor, RunningBroker, eventually
from tests.integration.scheduler.rig import Feed, HostActor, Scheduler, Users, publish, rows
from tests.unit.scheduler.build import EPOCH, job_id

pytestmark = pytest.mark.integration


@pytest.fixture
async def scheduler(
    streams: None, broker: RunningBroker, bus_for: BusFor
) -> AsyncIterator[Scheduler]:
    running = Scheduler(await bus_for("scheduler"), broker.settings)
    yield await running.ready()
    await running.stop()


@pytest.fixture
async def users(bus_for: BusFor, streams: None) -> Users:
    return Users(await bus_for("api"))


@pytest.fixture
async def feed(bus_for: BusFor, streams: None) -> Feed:
    return Feed(await bus_for("api"))


@pytest.fixture
async def box(bus_for: BusFor, streams: None) -> HostActor:
    return HostActor(await bus_for("agent", "box1"), "box1")


async def test_a_job_goes_from_request_to_completed_and_leaves_no_key(
    scheduler: Scheduler, users: Users, feed: Feed, box: HostActor
) -> None:
    job = await users.submit(1)
    await eventually(lambda: feed.status(1))
    state = await feed.latest(1)
    assert state is not None
    await eventually(lambda: _waits(feed, "no agent online"))
    reply = await box.beat()
    assert reply.ok
    await eventually(lambda: _keys(box, job))
    await box.reconcile()
    await eventually(lambda: _is(feed, 1, "COMPLETED"))
    events = await feed.events()
    assert [s.job_n for _, s in events] == list(range(1, len(events) + 1))
    assert [c for c, _ in events] == ["queued", "updated", "assigned", "running", "completed"]
    last = events[-1][1]
    assert (last.host, last.gpus, last.attempt) == ("box1", (0,), 1)
    assert last.final_metrics == {"loss": 1.0}
    assert last.final_seq == {"run": 3}
    await eventually(lambda: _no_key(box, job))
    entry = box.seen[0]
    assert entry.config["model_path"] == "/models/tiny"
    assert entry.epoch == (await box.beat()).ctl_epoch


async def test_assignment_is_in_jobs_before_its_key_is_written(
    scheduler: Scheduler, users: Users, feed: Feed, box: HostActor
) -> None:
    early: list[str] = []

    async def on_key(key: str, value: bytes | None) -> None:
        if value is None or key.endswith(".epoch"):
            return
        entry = ControlEntry.model_validate_json(value)
        known = {(c, s.job, s.attempt) for c, s in await feed.events()}
        if ("assigned", entry.job, entry.attempt) not in known:
            early.append(key)
        seen.append(key)

    seen: list[str] = []
    box.inventory = box.inventory.model_copy(
        update={
            "gpus": tuple(
                box.inventory.gpus[0].model_copy(update={"index": i, "uuid": f"G{i}"})
                for i in range(8)
            )
        }
    )
    await box.beat()
    watch = await box.bus.control().watch("box1", on_key)
    for number in range(1, 9):
        await users.submit(number)
    await eventually(lambda: len(seen) == 8)
    await watch.close()
    assert early == []


async def test_epoch_key_is_written_for_each_host_and_stale_keys_are_removed(
    scheduler: Scheduler, users: Users, box: HostActor
) -> None:
    ctl = scheduler.loop.bus.control()
    await ctl.put("box1.unknown-job", {"epoch": "old"})
    await box.beat()
    await eventually(lambda: _value(box, "box1.epoch"))
    told = json.loads((await box.bus.control().entries("box1"))["box1.epoch"])
    assert told == {"epoch": await ctl.epoch()}
    await eventually(lambda: _ctl_epoch(box, told["epoch"]))


async def test_cancel_pause_and_resume_reach_the_host(
    scheduler: Scheduler, users: Users, feed: Feed, box: HostActor
) -> None:
    box.finish = False
    await box.beat()
    job = await users.submit(1)
    await eventually(lambda: _keys(box, job))
    await box.reconcile()
    await eventually(lambda: _is(feed, 1, "RUNNING"))
    path = f"/ckpt/{job}/checkpoint-20"
    await box.fact(job, 1, RunCheckpoint, step=20, path=path)
    await users.ask(1, JobPauseRequested)
    await eventually(lambda: _desired(box, job, "pause"))
    await box.reconcile()
    await eventually(lambda: _is(feed, 1, "PAUSED"))
    await users.ask(1, JobResumeRequested)
    await eventually(lambda: _desired(box, job, "run"))
    await box.reconcile()
    assert [(e.attempt, e.resume) for e in box.seen] == [(1, False), (2, True)]
    await eventually(lambda: _is(feed, 1, "RUNNING"))
    await users.ask(1, JobCancelRequested)
    await eventually(lambda: _desired(box, job, "stop"))
    await box.reconcile()
    await eventually(lambda: _is(feed, 1, "CANCELLED"))
    final = await feed.latest(1)
    assert final is not None
    assert (final.reason, final.last_step, final.req_n) == (Reason.USER, 20, 4)


async def test_requests_twice_and_out_of_order_are_applied_once_in_order(
    scheduler: Scheduler, users: Users, feed: Feed
) -> None:
    job = job_id(1)
    cancel = JobCancelRequested(job=job, req_n=3, at=EPOCH)
    pause = JobPauseRequested(job=job, req_n=2, at=EPOCH)
    await publish(users.bus, subjects.request(job), cancel)
    await publish(users.bus, subjects.request(job), pause)
    await users.submit(1)
    for again in (pause, cancel, pause):
        await publish(users.bus, subjects.request(job), again)
    await eventually(lambda: _is(feed, 1, "CANCELLED"))
    changes = [c for c, _ in await feed.events()]
    assert changes == ["queued", "paused", "cancelled"]


async def test_a_malformed_message_jams_nothing(
    scheduler: Scheduler, users: Users, feed: Feed, box: HostActor
) -> None:
    await users.bus.connection.request("req.job.x", b"\xff not json", 3)
    await users.bus.connection.request("req.job.x", b'{"type": "request.job.cancel.v1"}', 3)
    await users.bus.connection.request("req.job.x", b'{"type": "request.job.newer.v9"}', 3)
    await box.bus.connection.request("run.box1.jobx.notanumber", b"{}", 3)
    await users.submit(1)
    await eventually(lambda: _is(feed, 1, "PENDING"))
    await users.submit(2, num_gpus="many")
    await eventually(lambda: _is(feed, 2, "FAILED"))
    rejected = await feed.latest(2)
    assert rejected is not None
    assert rejected.reason is Reason.CONFIG_INVALID
    assert rejected.message is not None
    assert "num_gpus" in rejected.message.en


async def test_a_second_agent_is_refused_and_a_forgotten_host_is_told(
    scheduler: Scheduler, users: Users, box: HostActor, bus_for: BusFor
) -> None:
    assert (await box.beat()).ok
    clone = HostActor(box.bus, "box1", boot_id="another-machine")
    assert (await clone.beat()).error == "identity_in_use"
    assert (await box.beat()).ok
    request = HostDrainRequested(host="box1", req_n=1, at=EPOCH, drained=True)
    await publish(users.bus, subjects.host_request("box1"), request)
    await eventually(lambda: _drained(box))
    forget = HostForgetRequested(host="box1", req_n=2, at=EPOCH)
    await publish(users.bus, subjects.host_request("box1"), forget)
    await eventually(lambda: _error(box, "forgotten"))


async def test_a_silent_host_is_disconnected_and_comes_back(
    streams: None, broker: RunningBroker, bus_for: BusFor, users: Users, feed: Feed, box: HostActor
) -> None:
    limits = Limits(lease_ttl=0.6, grace=0.2)
    scheduler = await Scheduler(await bus_for("scheduler"), broker.settings, limits).ready()
    box.finish = False
    living = asyncio.create_task(box.live())
    await users.submit(1)
    await eventually(lambda: _reason(feed, None))
    living.cancel()
    await asyncio.gather(living, return_exceptions=True)
    await eventually(lambda: _reason(feed, Reason.DISCONNECTED))

    async def back() -> bool:
        """It may be silent again by the time somebody looks."""
        await box.beat()
        told = [(s.status.value, s.reason) for _, s in await feed.events()]
        away = told.index(("RUNNING", Reason.DISCONNECTED))
        return ("RUNNING", None) in told[away:]

    await eventually(back)
    await scheduler.stop()


async def test_hosts_are_told_on_the_feed(
    scheduler: Scheduler, users: Users, box: HostActor, broker: RunningBroker
) -> None:
    await box.beat()

    async def told() -> bool:
        state = await users.bus.stream_state("JOBS")
        return state.messages >= 1

    await eventually(told)
    assert rows(broker.home, "SELECT id FROM hosts") == [("box1",)]


async def _keys(box: HostActor, job: str) -> bool:
    return f"box1.{job}" in await box.bus.control().entries("box1")


async def _no_key(box: HostActor, job: str) -> bool:
    return not await _keys(box, job)


async def _value(box: HostActor, key: str) -> bytes | None:
    return (await box.bus.control().entries("box1")).get(key)


async def _desired(box: HostActor, job: str, desired: str) -> bool:
    value = await _value(box, f"box1.{job}")
    return value is not None and ControlEntry.model_validate_json(value).desired == desired


async def _ctl_epoch(box: HostActor, epoch: str) -> bool:
    return (await box.beat()).ctl_epoch == epoch


async def _drained(box: HostActor) -> bool:
    return (await box.beat()).drained


async def _error(box: HostActor, error: str) -> bool:
    return (await box.beat()).error == error


async def _is(feed: Feed, number: int, status: str) -> bool:
    return await feed.status(number) == status


async def _reason(feed: Feed, reason: Reason | None) -> bool:
    state = await feed.latest(1)
    return state is not None and state.status.value == "RUNNING" and state.reason is reason


async def _waits(feed: Feed, words: str) -> bool:
    state = await feed.latest(1)
    return state is not None and state.waiting_for is not None and state.waiting_for.en == words


async def test_stop_releases_the_lead_at_once(
    streams: None, broker: RunningBroker, bus_for: BusFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "TTL_SECONDS", 3600.0)  # it cannot run out meanwhile
    bus = await bus_for("scheduler")
    first = await Scheduler(bus, broker.settings).ready()
    await first.stop()
    second = await Scheduler(bus, broker.settings).ready()
    assert second.loop.desk is not None
    assert rows(broker.home, "SELECT epoch FROM leader") == [(2,)]
    await second.stop()
