"""Requests over core NATS: answers, deadlines, bad input, many at once."""

from __future__ import annotations

import asyncio
import time

import pytest

from shared.bus import BusError, NoResponder, RequestTimeout
from shared.events.base import EventBase
from shared.events.calls import AckQuery, AckReply, AttemptCursor, SecretReply
from tests.conftest import PATIENCE, eventually

pytestmark = pytest.mark.contract
SECONDS = 60.0
"""A deadline for what comes within a second on a quiet machine."""
QUERY = AckQuery(attempts=(AttemptCursor(job="j", attempt=1, seq={"met": 7}),))


async def echo(subject: str, data: bytes) -> EventBase:
    return AckReply(attempts=AckQuery.model_validate_json(data).attempts)


async def test_a_request_is_answered(bus_for) -> None:
    api, agent = await bus_for("api"), await bus_for("agent", "box1")
    served = await api.serve("ack.*", echo)
    reply = await agent.request("ack.box1", QUERY, AckReply)
    assert reply.attempts == QUERY.attempts
    await served.close()
    with pytest.raises(NoResponder):
        await agent.request("ack.box1", QUERY, AckReply)


async def test_a_host_answers_commands(bus_for) -> None:
    api, agent = await bus_for("api"), await bus_for("agent", "box1")
    await agent.serve("cmd.box1.>", echo)
    assert (await api.request("cmd.box1.read_file", QUERY, AckReply)).attempts == QUERY.attempts


async def test_a_slow_answer_ends_at_the_deadline_of_the_caller(bus_for) -> None:
    api, agent = await bus_for("api"), await bus_for("agent", "box1")

    async def never(subject: str, data: bytes) -> EventBase:
        await asyncio.sleep(600)
        raise AssertionError

    served = await api.serve("ack.*", never)
    start = time.monotonic()
    with pytest.raises(RequestTimeout):
        await agent.request("ack.box1", QUERY, AckReply, timeout=0.2)
    assert time.monotonic() - start < 5 * PATIENCE
    assert agent.connection.in_flight == 0
    await served.close()


async def test_a_bad_request_leaves_the_service_alive(bus_for) -> None:
    api, agent = await bus_for("api"), await bus_for("agent", "box1")
    calls = 0

    async def picky(subject: str, data: bytes) -> EventBase | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("defect")
        if calls == 2:
            return None
        return await echo(subject, data)

    await api.serve("ack.*", picky)
    for _ in range(2):
        with pytest.raises(RequestTimeout):
            await agent.request("ack.box1", QUERY, AckReply, timeout=0.1)
    with pytest.raises(RequestTimeout):
        await agent.request("ack.box1", SecretReply(ok=True), AckReply, timeout=0.1)
    assert (await agent.request("ack.box1", QUERY, AckReply)).attempts == QUERY.attempts


async def test_an_answer_of_the_wrong_type_is_an_error(bus_for) -> None:
    api, agent = await bus_for("api"), await bus_for("agent", "box1")
    await api.serve("ack.*", echo)
    with pytest.raises(BusError, match="bad answer"):
        await agent.request("ack.box1", QUERY, SecretReply)


async def test_at_most_64_are_handled_at_once_and_none_is_lost(bus_for) -> None:
    api, agent = await bus_for("api"), await bus_for("agent", "box1")
    now = peak = 0
    full = asyncio.Event()

    async def slow(subject: str, data: bytes) -> EventBase:
        """Keep all waiting until there are as many as may be, and a moment longer."""
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        if now == 64:
            asyncio.get_running_loop().call_later(0.2, full.set)
        await full.wait()
        now -= 1
        return await echo(subject, data)

    await api.serve("ack.*", slow)
    replies = await asyncio.gather(
        *(agent.request("ack.box1", QUERY, AckReply, timeout=SECONDS) for _ in range(300))
    )
    assert len(replies) == 300
    assert peak == 64


async def test_an_answer_goes_to_an_inbox_only(bus_for, streams) -> None:
    api, agent, scheduler = (
        await bus_for("api"),
        await bus_for("agent", "box1"),
        await bus_for("scheduler"),
    )
    await scheduler.serve("hb.*", echo)
    # The host asks the scheduler to answer, with the scheduler's rights, onto a subject of the scheduler.
    await agent.connection.send("hb.box1", QUERY.model_dump_json().encode(), reply="job.forged")
    assert (await agent.request("hb.box1", QUERY, AckReply)).attempts
    assert (await api.stream_state("JOBS")).messages == 0


async def test_a_service_and_a_listener_come_back_after_a_restart(broker, bus_for) -> None:
    api, agent = await bus_for("api"), await bus_for("agent", "box1")
    await api.serve("ack.*", echo)
    heard: list[str] = []

    async def hear(subject: str, data: bytes) -> None:
        heard.append(subject)

    await agent.listen("cmd.box1.>", hear)
    reconnected = asyncio.Event()

    async def on_reconnect() -> None:
        reconnected.set()

    api.on_reconnect(on_reconnect)
    await broker.restart()
    async with asyncio.timeout(SECONDS):
        await reconnected.wait()
    await agent.connection.wait_connected(SECONDS)
    assert (await agent.request("ack.box1", QUERY, AckReply)).attempts == QUERY.attempts
    await api.connection.send("cmd.box1.ping", b"")
    await eventually(lambda: heard == ["cmd.box1.ping"])
