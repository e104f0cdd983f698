"""Publishing: acknowledgements, duplicates, order, speed and each way to be refused."""

from __future__ import annotations

import asyncio
import time

import pytest

from shared.bus import (
    BusUnavailable,
    MessageTooLarge,
    PubAck,
    PublishTimeout,
    StreamFull,
    StreamMissing,
    ensure_streams,
    wire,
)
from shared.bus.streams import DEFAULT_STORE_MIB, SPECS, server_config
from shared.events import decode
from shared.settings import Settings
from tests.conftest import PATIENCE

pytestmark = pytest.mark.contract
SECONDS = 60.0
"""A deadline for what comes within a second on a quiet machine."""


async def test_an_ack_names_the_place_and_a_repeat_is_a_duplicate(bus_for, streams, batch) -> None:
    agent = await bus_for("agent", "box1")
    subject, event, env, msg_id = batch(1)
    first = await agent.publish(subject, event, env, msg_id=msg_id)
    assert first == PubAck("METRICS", 1, False)
    assert await agent.publish(subject, event, env, msg_id=msg_id) == PubAck("METRICS", 1, True)


async def test_the_same_id_on_another_subject_is_no_duplicate(bus_for, streams, batch) -> None:
    agent = await bus_for("agent", "box1")
    acks = await agent.publish_many([batch(1), batch(1, "met.box1.job.2")])
    assert acks == [PubAck("METRICS", 1), PubAck("METRICS", 2)]


async def test_headers_carry_cloud_events_and_the_trace(bus_for, streams, batch) -> None:
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    subject, event, env, msg_id = batch(1)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    env = type(env)(env.id, env.source, env.time, trace)
    await agent.publish(subject, event, env, msg_id=msg_id)
    reader = await api.reader("METRICS", after=0, epoch=None)
    (message,) = await reader.fetch(timeout=SECONDS)
    got, decoded = decode(message.headers, message.data)
    assert (got.id, got.source, got.traceparent) == (env.id, env.source, trace)
    assert decoded == event
    assert message.headers["ce-type"] == "trainyard.run.metrics.v1"


async def test_many_are_stored_in_order_at_more_than_5000_a_second(bus_for, streams, batch) -> None:
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    count = 5_000
    items = [batch(n) for n in range(1, count + 1)]
    best = 0.0
    for attempt in range(3):
        run = [(f"{s[:-1]}{attempt}", e, env, i) for s, e, env, i in items]
        # Our own processor time: the client is the slow end, and other programs must not count.
        start = time.process_time()
        acks = await agent.publish_many(run, timeout=2 * SECONDS)
        best = max(best, count / (time.process_time() - start))
        assert [a.seq for a in acks if isinstance(a, PubAck)] == [
            attempt * count + n for n in range(1, count + 1)
        ]
        if best >= 5_000:
            break
    reader = await api.reader("METRICS", after=0, epoch=None)
    numbers: list[int] = []
    while len(numbers) < count:
        messages = await reader.fetch(1000, timeout=SECONDS)
        assert messages
        numbers += [decode(m.headers, m.data)[1].first_seq for m in messages]  # type: ignore[union-attr]
    assert numbers[:count] == list(range(1, count + 1))
    assert best >= 5_000, f"{best:.0f} messages a second"


async def test_a_full_stream_refuses_and_takes_more_after_a_purge(bus_for, batch) -> None:
    scheduler, agent = await bus_for("scheduler"), await bus_for("agent", "box1")
    await ensure_streams(scheduler, store_mib=8)
    limit = server_config(SPECS["METRICS"], 8)["max_bytes"]
    # Random text, because the stream is compressed.
    items = [batch(n, text=f"{n}-" + "x" * 200_000) for n in range(1, limit // 200_000 + 3)]
    results = await agent.publish_many(items, timeout=SECONDS)
    full = [r for r in results if isinstance(r, StreamFull)]
    assert full
    assert full[0].stream == "METRICS"
    stored = [r.seq for r in results if isinstance(r, PubAck)]
    api = await bus_for("api")
    await api.purge_upto("METRICS", stored[-1])
    state = await api.stream_state("METRICS")
    assert (state.messages, state.last_seq) == (0, stored[-1])
    assert isinstance((await agent.publish_many(items[-1:]))[0], PubAck)


async def test_too_large_is_an_error_of_one_message(bus_for, streams, batch) -> None:
    agent = await bus_for("agent", "box1")
    results = await agent.publish_many([batch(1), batch(2, text="x" * 1_100_000), batch(3)])
    assert isinstance(results[0], PubAck)
    assert isinstance(results[1], MessageTooLarge)
    assert isinstance(results[2], PubAck)
    # Body within the limit, headers not.
    subject, event, env, _ = batch(4, text="x" * (agent.connection.max_payload - 200))
    with pytest.raises(MessageTooLarge):
        await agent.publish(subject, event, env, msg_id="4")
    assert agent.is_connected


async def test_without_streams_it_says_which_is_missing(bus_for, batch) -> None:
    agent, api = await bus_for("agent", "box1"), await bus_for("api")
    subject, event, env, msg_id = batch(1)
    with pytest.raises(StreamMissing) as caught:
        await agent.publish(subject, event, env, msg_id=msg_id)
    assert caught.value.stream == "METRICS"
    with pytest.raises(StreamMissing):
        await api.stream_state("METRICS")
    with pytest.raises(StreamMissing):
        await (await api.reader("METRICS", after=0, epoch=None)).fetch()


async def test_a_broker_that_is_away_fails_fast_and_one_that_hangs_by_deadline(
    broker, bus_for, streams, batch
) -> None:
    agent = await bus_for("agent", "box1")
    subject, event, env, msg_id = batch(1)
    await broker.freeze()
    start = time.monotonic()
    with pytest.raises(PublishTimeout):
        await agent.publish(subject, event, env, msg_id=msg_id, timeout=0.3)
    assert time.monotonic() - start < 8 * PATIENCE
    broker.kill()
    start = time.monotonic()
    with pytest.raises((BusUnavailable, PublishTimeout)):
        await agent.publish(subject, event, env, msg_id=msg_id, timeout=5)
    with pytest.raises(BusUnavailable):
        await agent.publish(subject, event, env, msg_id=msg_id, timeout=5)
    assert time.monotonic() - start < 8 * PATIENCE
    await broker.start()
    await agent.connection.wait_connected(SECONDS)
    ack = await agent.publish(subject, event, env, msg_id=msg_id)
    # Whether the first try had arrived is not known; that there is one copy is.
    assert ack.seq == 1


async def test_in_flight_publishes_end_as_soon_as_the_link_breaks(
    broker, bus_for, streams, batch
) -> None:
    agent = await bus_for("agent", "box1")
    await broker.freeze()
    task = asyncio.create_task(
        agent.publish_many([batch(n) for n in range(1, 20)], timeout=SECONDS)
    )
    await asyncio.sleep(0)
    start = time.monotonic()
    broker.kill()
    results = await task
    assert time.monotonic() - start < 5 * PATIENCE
    assert all(isinstance(r, PublishTimeout | BusUnavailable) for r in results)
    assert agent.connection.in_flight == 0


async def test_ensure_streams_is_idempotent_and_repairs_drift(bus_for) -> None:
    scheduler, api = await bus_for("scheduler"), await bus_for("api")
    await ensure_streams(scheduler, store_mib=64)
    before = {s: (await api.stream_state(s)).epoch for s in SPECS}
    await ensure_streams(api, store_mib=64)
    desired = server_config(SPECS["LOGS"], 64)
    drifted = desired | {"max_age": 1_000_000_000 * 3600, "max_bytes": desired["max_bytes"] // 2}
    await wire.call(scheduler.connection, "STREAM.UPDATE.LOGS", drifted, stream="LOGS")
    await ensure_streams(scheduler, store_mib=64)
    config = (await wire.stream_info(api.connection, "LOGS"))["config"]
    for key, value in desired.items():
        assert config.get(key, 0) == value, key
    assert {s: (await api.stream_state(s)).epoch for s in SPECS} == before


async def test_every_stream_is_bounded_and_together_they_fit_the_store() -> None:
    configs = [server_config(spec) for spec in SPECS.values()]
    assert all(c["max_bytes"] > 0 for c in configs)
    assert sum(c["max_bytes"] for c in configs) <= DEFAULT_STORE_MIB * 1024 * 1024
    assert Settings().nats_store_mib == DEFAULT_STORE_MIB
    for name in ("METRICS", "LOGS", "SAMPLES"):
        config = server_config(SPECS[name])
        assert (config["persist_mode"], config["compression"], config["discard"]) == (
            "async",
            "s2",
            "new",
        )
