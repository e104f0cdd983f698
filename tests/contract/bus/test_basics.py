from __future__ import annotations

import time
from datetime import UTC, datetime

from shared.bus import PubAck
from shared.events import Envelope, decode
from shared.events.run import MetricsBatch, RunStarted
from shared.ids import new_message_id


def envelope(source: str = "/trainyard/test") -> Envelope:
    return Envelope(new_message_id(), source, datetime.now(UTC), traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")


async def test_publish_and_read(bus_for, streams) -> None:
    agent = await bus_for("agent", "h1")
    api = await bus_for("api")
    event = RunStarted(seq=1, t=1.0, pid=1, boot_id="b", warm=True)
    ack = await agent.publish("run.h1.j.1", event, envelope(), msg_id="1")
    assert ack == PubAck("RUNS", 1, False)
    again = await agent.publish("run.h1.j.1", event, envelope(), msg_id="1")
    assert again == PubAck("RUNS", 1, True)
    other = await agent.publish("run.h1.j.2", event, envelope(), msg_id="1")
    assert other == PubAck("RUNS", 2, False)
    reader = await api.reader("RUNS", after=0, epoch=None, subjects=("run.>",))
    messages = await reader.fetch(timeout=2.0)
    assert [m.seq for m in messages][0] == 1
    env, decoded = decode(messages[0].headers, messages[0].data)
    assert decoded == event
    assert env.traceparent and env.traceparent.startswith("00-aaa")
    await reader.close()


async def test_speed(bus_for, streams) -> None:
    agent = await bus_for("agent", "h1")
    items = [
        ("met.h1.j.1", MetricsBatch(first_seq=i, items=({"step": i},)), envelope(), str(i))
        for i in range(10_000)
    ]
    t = time.perf_counter()
    acks = await agent.publish_many(items)
    d = time.perf_counter() - t
    assert [a.seq for a in acks] == list(range(1, 10_001))
    print(10_000 / d)
    api = await bus_for("api")
    reader = await api.reader("METRICS", after=0, epoch=None)
    t = time.perf_counter()
    n = 0
    while n < 10_000:
        n += len(await reader.fetch(timeout=5))
    print(10_000 / (time.perf_counter() - t))
