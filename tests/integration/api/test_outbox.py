"""Requests reach the stream in order, at least once, whatever happens to the broker; and come back as state."""

from __future__ import annotations

import asyncio

import pytest
from sqlmodel import select

from services.api.db.tables import RequestRow
from services.api.outbox import STREAM
from shared.bus import Bus, ensure_streams
from shared.bus.credentials import bus_config
from shared.events import Envelope, decode
from shared.events.job import JOB_EVENTS
from shared.ids import new_message_id
from shared.jobs.lifecycle import Change, JobState
from shared.jobs.status import JobStatus
from tests.conftest import START_SECONDS, TEST_STORE_MIB, BusFor, RunningBroker, eventually
from tests.integration.api.conftest import MakeYard
from tests.integration.api.yard import ApiYard, now

pytestmark = [pytest.mark.integration]


async def requests(bus: Bus) -> list[tuple[str, int, str]]:
    """Everything in the stream: job, req_n, type."""
    state = await bus.stream_state(STREAM)
    if state.messages == 0:
        return []
    reader = await bus.reader(STREAM, after=0, epoch=None)
    found: list[tuple[str, int, str]] = []
    last = 0
    while last < state.last_seq:
        messages = await reader.fetch(max_messages=500, timeout=60)
        assert messages, f"read up to {last} of {state.last_seq}"
        last = messages[-1].seq
        for message in messages:
            _, event = decode(message.headers, message.data)
            found.append((event.job, event.req_n, event.type))  # type: ignore[union-attr]
    await reader.close()
    return found


async def confirmed(yard: ApiYard) -> bool:
    rows = yard.rows(select(RequestRow))
    return bool(rows) and all(row.epoch for row in rows)


async def reply_as_scheduler(bus: Bus, change: Change, state: JobState) -> None:
    event = JOB_EVENTS[change].model_validate({"at": now(), "state": state.model_dump()})
    envelope = Envelope(new_message_id(), "/trainyard/scheduler", now())
    await bus.publish(f"job.{state.job}", event, envelope, msg_id=new_message_id())


async def ready(yard: ApiYard) -> bool:
    return (await yard.http.get("/readyz")).status_code == 200


async def test_requests_go_out_and_state_comes_back(
    make_yard: MakeYard, database_url: str | None, streams: None, bus_for: BusFor
) -> None:
    yard = make_yard(database_url)
    assert (await yard.http.get("/readyz")).json()["checks"]["bus"]["ok"] is False
    await yard.start(await bus_for("api"))
    await eventually(lambda: ready(yard))
    uuid = (await yard.submit())["uuid"]
    await yard.act(uuid, "cancel")
    scheduler = await bus_for("scheduler")
    await eventually(lambda: confirmed(yard), timeout=5)
    assert await requests(scheduler) == [
        (uuid, 1, "request.job.submit.v1"),
        (uuid, 2, "request.job.cancel.v1"),
    ]
    state = JobState(job=uuid, job_n=1, req_n=2, status=JobStatus.CANCELLED)
    await reply_as_scheduler(scheduler, Change.CANCELLED, state)

    async def cancelled() -> bool:
        return bool((await yard.job(uuid))["status"] == "CANCELLED")

    await eventually(cancelled, timeout=5)
    text = (await yard.http.get("/metrics")).text
    assert 'trainyard_jobs{status="CANCELLED"} 1.0' in text
    assert "trainyard_outbox_depth 0.0" in text
    assert 'trainyard_http_requests_total{method="POST",route="/api/v1/jobs/",status="201"}' in text


async def test_jobs_are_accepted_while_the_broker_is_down(
    make_yard: MakeYard, broker: RunningBroker, streams: None, bus_for: BusFor
) -> None:
    yard = make_yard()
    await yard.start(await bus_for("api"))
    await eventually(lambda: ready(yard))
    broker.kill()
    jobs = [(await yard.submit(name=f"j{i}"))["uuid"] for i in range(5)]
    assert (await yard.act(jobs[0], "cancel")).status_code == 202
    check = (await yard.http.get("/readyz")).json()
    assert check["checks"]["bus"] == {"ok": False, "detail": "the broker cannot be reached"}
    assert check["checks"]["database"]["ok"] is True
    assert "trainyard_outbox_depth 6.0" in (await yard.http.get("/metrics")).text
    await broker.start()
    await eventually(lambda: confirmed(yard), timeout=15)
    found = await requests(await bus_for("scheduler"))
    assert sorted(found) == sorted(
        [(job, 1, "request.job.submit.v1") for job in jobs]
        + [(jobs[0], 2, "request.job.cancel.v1")]
    )
    assert found.index((jobs[0], 1, "request.job.submit.v1")) < found.index(
        (jobs[0], 2, "request.job.cancel.v1")
    )


async def test_a_wiped_store_gets_all_that_is_unfinished_again(
    make_yard: MakeYard, broker: RunningBroker, streams: None, bus_for: BusFor
) -> None:
    yard = make_yard()
    done, answered, open_ = [(await yard.submit(name=n))["uuid"] for n in ("done", "run", "open")]
    await yard.act(open_, "pause")
    await yard.start(await bus_for("api"))
    await eventually(lambda: confirmed(yard))
    for uuid, status in ((done, JobStatus.COMPLETED), (answered, JobStatus.RUNNING)):
        await yard.say(Change.COMPLETED, uuid, status=status, req_n=1)
    before = {row.epoch for row in yard.rows(select(RequestRow))}
    broker.kill()
    broker.wipe()
    await broker.start()
    other = await bus_for("scheduler")
    await ensure_streams(other, store_mib=TEST_STORE_MIB)
    want = {(answered, 1), (open_, 1), (open_, 2)}

    async def again() -> bool:
        return {(job, n) for job, n, _ in await requests(other)} == want

    def epochs() -> dict[str, str | None]:
        return {row.key: row.epoch for row in yard.rows(select(RequestRow))}

    await eventually(again, timeout=20)
    await eventually(lambda: epochs()[f"job:{open_}"] not in before)  # noted once it is sent
    assert epochs()[f"job:{done}"] in before


async def test_the_api_starts_without_a_broker_and_finds_it_later(
    make_yard: MakeYard, broker: RunningBroker
) -> None:
    await ensure_streams_of(broker)
    broker.kill()
    yard = make_yard(nats_url=broker.url)
    await yard.start()
    uuid = (await yard.submit())["uuid"]
    body = (await yard.http.get("/readyz")).json()
    assert body["checks"]["projection"] == {"ok": False, "detail": "waits for the broker"}
    await broker.start()
    await eventually(lambda: ready(yard), timeout=15)
    await eventually(lambda: confirmed(yard), timeout=5)
    assert (await yard.job(uuid))["status"] == "PENDING"


async def ensure_streams_of(broker: RunningBroker) -> None:
    bus = await Bus.connect(bus_config(broker.settings, "scheduler"), timeout=START_SECONDS)
    await ensure_streams(bus, store_mib=TEST_STORE_MIB)
    await bus.close()


async def test_a_burst_is_published_in_order_per_job(
    make_yard: MakeYard, streams: None, bus_for: BusFor
) -> None:
    yard = make_yard()
    await yard.start(await bus_for("api"))

    async def one(i: int) -> None:
        uuid = (await yard.submit(name=f"j{i}"))["uuid"]
        await yard.http.patch(f"/api/v1/jobs/{uuid}", json={"priority": i % 100})
        await yard.act(uuid, "cancel")

    await asyncio.gather(*(one(i) for i in range(60)))
    await eventually(lambda: confirmed(yard))
    seen: dict[str, list[int]] = {}
    for job, req_n, _ in await requests(await bus_for("scheduler")):
        seen.setdefault(job, []).append(req_n)
    assert len(seen) == 60
    assert all(numbers == [1, 2, 3] for numbers in seen.values())
