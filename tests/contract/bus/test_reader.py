"""Readers over every kind of trouble: restarts, hangs, wiped stores, filters, the broker away."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import pytest

from shared.bus import BusUnavailable, PubAck, StreamReset, ensure_streams, wire
from shared.bus import reader as reader_module
from shared.events import Envelope, decode
from shared.events.requests import JobCancelRequested
from tests.conftest import PATIENCE, eventually

pytestmark = pytest.mark.contract
SECONDS = 60.0
"""A deadline for what comes within a second on a quiet machine."""


async def read(reader, count: int, timeout: float = SECONDS) -> list[int]:
    """Return the numbers of the next `count` messages, calling again while the broker is away."""
    numbers: list[int] = []
    deadline = time.monotonic() + timeout
    while len(numbers) < count:
        assert time.monotonic() < deadline, f"only {len(numbers)} of {count}"
        try:
            messages = await reader.fetch(100, timeout=0.5)
        except BusUnavailable:
            continue
        numbers += [decode(m.headers, m.data)[1].seq for m in messages]
    return numbers


async def fetch_until_it_fails(reader, timeout: float) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        await reader.fetch(timeout=timeout)


async def publish(bus, items, timeout: float = SECONDS) -> None:
    """Publish until acknowledged, as a relay does."""
    deadline = time.monotonic() + timeout
    left = list(items)
    while left:
        assert time.monotonic() < deadline
        results = await bus.publish_many(left)
        left = [i for i, r in zip(left, results, strict=True) if not isinstance(r, PubAck)]
        if left:
            await asyncio.sleep(0.02)


async def test_it_starts_behind_its_position_and_returns_what_is_there(
    bus_for, streams, fact
) -> None:
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    await publish(agent, [fact(n) for n in range(1, 11)])
    reader = await api.reader("RUNS", after=7, epoch=None)
    messages = await reader.fetch(timeout=SECONDS)
    assert [m.seq for m in messages] == [8, 9, 10]
    assert {m.subject for m in messages} == {"run.box1.job.1"}
    state = await api.stream_state("RUNS")
    assert {m.epoch for m in messages} == {state.epoch} == {reader.epoch}
    assert reader.pending == 0
    start = time.monotonic()
    assert await reader.fetch(timeout=0.2) == []
    assert time.monotonic() - start < 5 * PATIENCE
    await publish(agent, [fact(11)])
    assert await read(reader, 1) == [11]


async def test_a_waiting_fetch_wakes_at_once(bus_for, streams, fact) -> None:
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    reader = await api.reader("RUNS", after=0, epoch=None)
    assert await reader.fetch(timeout=0.1) == []
    waiting = asyncio.create_task(reader.fetch(timeout=SECONDS))
    await asyncio.sleep(0)
    start = time.monotonic()
    await publish(agent, [fact(1)])
    assert len(await waiting) == 1
    assert time.monotonic() - start < 5 * PATIENCE


async def test_filters_leave_out_other_subjects(bus_for, streams, fact) -> None:
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    await publish(agent, [fact(n, f"run.box1.job{n % 3}.1") for n in range(1, 10)])
    one = await api.reader("RUNS", after=0, epoch=None, subjects=("run.*.job1.*",))
    assert await read(one, 3) == [1, 4, 7]
    two = await api.reader("RUNS", after=2, epoch=None, subjects=("run.*.job1.*", "run.*.job2.*"))
    assert await read(two, 4) == [4, 5, 7, 8]


async def test_nothing_is_missing_or_doubled_over_restarts(broker, bus_for, streams, fact) -> None:
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    reader = await api.reader("RUNS", after=0, epoch=None)
    total = 3_000

    async def write() -> None:
        for first in range(1, total + 1, 100):
            await publish(agent, [fact(n) for n in range(first, first + 100)])

    async def crash() -> None:
        for _ in range(3):
            seen = (await api.stream_state("RUNS")).last_seq
            await broker.restart()
            await api.connection.wait_connected(SECONDS)
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline:
                state = await api.stream_state("RUNS")
                if state.last_seq > seen:
                    break
                await asyncio.sleep(0.02)

    writing, crashing = asyncio.create_task(write()), asyncio.create_task(crash())
    numbers = await read(reader, total, timeout=4 * SECONDS)
    await writing
    await crashing
    assert numbers == list(range(1, total + 1))


async def test_a_fetch_in_flight_survives_a_restart_without_waiting_out_its_time(
    broker, bus_for, streams, fact
) -> None:
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    reader = await api.reader("RUNS", after=0, epoch=None)
    assert await reader.fetch(timeout=0.1) == []
    waiting = asyncio.create_task(reader.fetch(timeout=SECONDS))
    await asyncio.sleep(0)
    start = time.monotonic()
    await broker.restart()
    await agent.connection.wait_connected(SECONDS)
    await publish(agent, [fact(1)])
    assert [m.seq for m in await waiting] == [1]
    assert time.monotonic() - start < 10 * PATIENCE


async def test_a_broker_that_is_away_is_said_within_the_deadline(broker, bus_for, streams) -> None:
    api = await bus_for("api")
    reader = await api.reader("RUNS", after=0, epoch=None)
    assert await reader.fetch(timeout=0.1) == []
    broker.kill()
    start = time.monotonic()
    with pytest.raises(BusUnavailable):
        await fetch_until_it_fails(reader, 0.3)
    assert time.monotonic() - start < 10 * PATIENCE
    await reader.close()


async def test_a_wiped_store_is_a_reset_with_a_new_epoch(broker, bus_for, streams, fact) -> None:
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    await publish(agent, [fact(n) for n in range(1, 6)])
    reader = await api.reader("RUNS", after=0, epoch=None)
    assert await read(reader, 5) == [1, 2, 3, 4, 5]
    old = reader.epoch
    broker.kill()
    broker.wipe()
    await broker.start()
    await api.connection.wait_connected(SECONDS)
    await ensure_streams(api, store_mib=64)
    with pytest.raises(StreamReset) as caught:
        await read(reader, 1)
    assert caught.value.epoch != old
    assert caught.value.last_seq == 0
    assert (await api.stream_state("RUNS")).epoch == caught.value.epoch
    await agent.connection.wait_connected(SECONDS)
    # Longer than before, so that only the epoch tells.
    await publish(agent, [fact(n) for n in range(101, 111)])
    stale = await api.reader("RUNS", after=5, epoch=old)
    with pytest.raises(StreamReset):
        await stale.fetch(timeout=SECONDS)
    fresh = await api.reader("RUNS", after=0, epoch=caught.value.epoch)
    assert await read(fresh, 10) == list(range(101, 111))


async def test_a_stream_behind_the_position_is_a_reset(bus_for, streams, fact) -> None:
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    await publish(agent, [fact(1)])
    epoch = (await api.stream_state("RUNS")).epoch
    with pytest.raises(StreamReset) as caught:
        await (await api.reader("RUNS", after=9, epoch=epoch)).fetch(timeout=SECONDS)
    assert (caught.value.epoch, caught.value.last_seq) == (epoch, 1)


async def test_the_epoch_stays_over_restart_purge_and_update(
    broker, bus_for, streams, envelope
) -> None:
    api, scheduler = await bus_for("api"), await bus_for("scheduler")

    def request(n: int) -> tuple[str, JobCancelRequested, Envelope, str]:
        event = JobCancelRequested(job="j", req_n=n, at=datetime.now(UTC))
        return "req.job.j", event, envelope(), str(n)

    await publish(api, [request(n) for n in range(1, 4)])
    before = await scheduler.stream_state("REQUESTS")
    await scheduler.purge_upto("REQUESTS", 3)
    await broker.restart()
    await scheduler.connection.wait_connected(SECONDS)
    await ensure_streams(scheduler, store_mib=128)
    after = await scheduler.stream_state("REQUESTS")
    assert (after.epoch, after.last_seq, after.messages) == (before.epoch, 3, 0)
    await api.connection.wait_connected(SECONDS)
    reader = await scheduler.reader("REQUESTS", after=3, epoch=before.epoch)
    await publish(api, [request(4)])
    (message,) = await reader.fetch(timeout=SECONDS)
    assert decode(message.headers, message.data)[1].req_n == 4


async def test_a_consumer_that_the_broker_removed_is_made_again(bus_for, streams, fact) -> None:
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    reader = await api.reader("RUNS", after=0, epoch=None)
    await publish(agent, [fact(1)])
    assert await read(reader, 1) == [1]
    assert await reader.fetch(timeout=0.1) == []
    await wire.call(api.connection, f"CONSUMER.DELETE.RUNS.{reader._consumer}")
    await publish(agent, [fact(2)])
    assert await read(reader, 1) == [2]


async def test_a_lost_message_is_noticed_and_read_again(bus_for, streams, fact) -> None:
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    reader = await api.reader("RUNS", after=0, epoch=None)
    await publish(agent, [fact(1)])
    assert await read(reader, 1) == [1]
    handler = reader._subscription.handler
    dropped = []

    async def lossy(message) -> None:
        if not dropped and message.data:
            dropped.append(message)
        else:
            await handler(message)

    reader._subscription.live._cb = lossy
    await publish(agent, [fact(n) for n in range(2, 8)])
    assert await read(reader, 6) == [2, 3, 4, 5, 6, 7]
    assert dropped


async def test_a_silent_broker_is_noticed_by_missing_heartbeats(
    broker, bus_for, streams, fact, monkeypatch
) -> None:
    monkeypatch.setattr(reader_module, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(reader_module, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(reader_module, "SETUP_SECONDS", 0.2)
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    reader = await api.reader("RUNS", after=0, epoch=None)
    assert await reader.fetch(timeout=0.1) == []
    await broker.freeze()
    with pytest.raises(BusUnavailable):
        await fetch_until_it_fails(reader, 1.0)
    monkeypatch.undo()  # from here on nobody is to be taken for gone
    broker.thaw()
    await publish(agent, [fact(1)])
    assert await read(reader, 1) == [1]


async def test_a_reader_keeps_one_subscription_and_leaves_none_behind(
    broker, bus_for, streams, fact
) -> None:
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    reader = await api.reader("RUNS", after=0, epoch=None)
    for n in range(1, 30):
        await publish(agent, [fact(n)])
        assert await read(reader, 1) == [n]
    assert len(api.connection.subscriptions) == 1
    await reader.close()
    assert not api.connection.subscriptions
    info = await wire.stream_info(api.connection, "RUNS")
    assert info["state"]["consumer_count"] == 0
    with pytest.raises(BusUnavailable):
        await reader.fetch()


async def test_the_fast_streams_start_a_new_epoch_with_each_start_of_the_broker(
    broker, bus_for, streams, batch
) -> None:
    """They may lose acknowledged messages in a crash and use their numbers again; nobody may miss that."""
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    reader = await api.reader("METRICS", after=0, epoch=None)
    sent = [batch(n) for n in range(1, 501)]
    await publish(agent, sent)
    got: set[int] = set()
    while len(got) < 500:
        got |= {m.seq for m in await reader.fetch(timeout=SECONDS)}
    writers_epoch = (await agent.stream_state("METRICS")).epoch
    assert reader.epoch == writers_epoch
    await broker.restart()
    await api.connection.wait_connected(SECONDS)
    await agent.connection.wait_connected(SECONDS)
    with pytest.raises(StreamReset) as caught:
        await read(reader, 1)
    assert caught.value.epoch != writers_epoch
    assert (await agent.stream_state("METRICS")).epoch == caught.value.epoch
    # The writer sends everything unconfirmed again; what survived is recognised, what was lost is stored.
    await publish(agent, sent)
    assert (await api.stream_state("METRICS")).messages == 500
    fresh = await api.reader("METRICS", after=0, epoch=caught.value.epoch)
    numbers: list[int] = []
    while len(numbers) < 500:
        messages = await fresh.fetch(timeout=SECONDS)
        assert messages
        numbers += [decode(m.headers, m.data)[1].first_seq for m in messages]
    assert sorted(numbers) == list(range(1, 501))


async def test_closing_the_bus_ends_readers_and_watches_at_once(bus_for, streams) -> None:
    api, agent = await bus_for("api"), await bus_for("agent", "box1")
    reader = await api.reader("RUNS", after=0, epoch=None)
    waiting = asyncio.create_task(reader.fetch(timeout=SECONDS))

    async def ignore(key: str, value: bytes | None) -> None: ...

    watch = await agent.control().watch("box1", ignore)
    await asyncio.sleep(0)
    start = time.monotonic()
    await api.close()
    await agent.close()
    with pytest.raises(BusUnavailable):
        await waiting
    await eventually(watch._task.done)
    assert time.monotonic() - start < 5 * PATIENCE
    with pytest.raises(BusUnavailable):
        await api.stream_state("RUNS")
