"""What ends a link without saying so, and what nats-py would not survive."""

from __future__ import annotations

import asyncio
import logging

import pytest

from shared.bus import BusUnavailable, link
from shared.events.calls import HostCommand, HostReply
from tests.conftest import eventually

pytestmark = pytest.mark.contract


async def test_a_link_that_swallows_everything_is_given_up_and_replaced(
    broker, bus_for, streams, fact, monkeypatch
) -> None:
    monkeypatch.setattr(link, "PING_SECONDS", 0.5)
    agent = await bus_for("agent", "box1")
    await broker.freeze()
    await eventually(lambda: not agent.is_connected)
    subject, event, env, msg_id = fact(1)
    with pytest.raises(BusUnavailable):
        await agent.publish(subject, event, env, msg_id=msg_id)
    monkeypatch.undo()  # the new link is not to be given up for a slow answer
    broker.thaw()
    await agent.connection.wait_connected(60)
    assert (await agent.publish(subject, event, env, msg_id=msg_id)).seq == 1


async def test_a_read_loop_that_dies_of_a_defect_is_noticed(bus_for, streams, caplog) -> None:
    api = await bus_for("api")
    parser = api.connection._link.client._ps

    async def defect(data: bytes) -> None:
        raise ValueError("defect in the parser")

    with caplog.at_level(logging.CRITICAL, logger="nats.aio.client"):
        parser.parse = defect
        with pytest.raises(BusUnavailable):
            await api.stream_state("RUNS", timeout=60)
        await eventually(lambda: api.connection.generation == 2)
    assert (await api.stream_state("RUNS")).messages == 0


async def test_a_cancelled_call_leaves_the_link_whole(bus_for, streams) -> None:
    api = await bus_for("api")
    for delay in (0, 0.0005, 0.001, 0.002):
        calls = [
            asyncio.create_task(call)
            for call in (
                api.stream_state("RUNS"),
                api.listen("job.*", lambda *_: asyncio.sleep(0)),
                api.request("cmd.box1.x", HostCommand(), HostReply),
            )
        ]
        await asyncio.sleep(delay)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert (await api.stream_state("RUNS")).messages == 0
    assert api.connection.generation == 1
    assert api.connection.in_flight == 0


async def test_reconnect_callbacks_run_each_time_and_their_errors_stay_theirs(
    broker, bus_for
) -> None:
    api = await bus_for("api")
    ran: list[str] = []

    async def broken() -> None:
        ran.append("broken")
        raise RuntimeError("defect")

    async def good() -> None:
        ran.append("good")

    api.on_reconnect(broken)
    api.on_reconnect(good)
    for n in (1, 2):
        await broker.restart()
        await eventually(lambda n=n: sorted(ran) == sorted(["broken", "good"] * n))
    assert api.is_connected
