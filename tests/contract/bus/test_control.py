"""The bucket of desired states: put, get, delete, list, watch, over restarts and a wiped store."""

from __future__ import annotations

import json

import pytest

from shared.bus import StreamMissing, ensure_streams
from shared.events.calls import ControlEntry
from tests.conftest import eventually

pytestmark = pytest.mark.contract


class Seen:
    """What a watch has reported."""

    def __init__(self) -> None:
        self.now: dict[str, int] = {}
        self.calls = 0

    async def __call__(self, key: str, value: bytes | None) -> None:
        self.calls += 1
        if value is None:
            self.now.pop(key, None)
        else:
            self.now[key] = json.loads(value)["n"]


async def test_put_get_delete_and_list(bus_for, streams) -> None:
    scheduler = await bus_for("scheduler")
    ctl = scheduler.control()
    assert await ctl.get("box1.j1") is None
    assert await ctl.entries() == {}
    entry = ControlEntry(epoch="e", job="j1", attempt=2, desired="pause", stop_mode="pause")
    await ctl.put("box1.j1", entry)
    await ctl.put("box1.epoch", {"epoch": "e"})
    await ctl.put("box2.j2", {"n": 1})
    await ctl.put("box2.j2", {"n": 2})
    assert ControlEntry.model_validate_json(await ctl.get("box1.j1") or b"") == entry
    assert set(await ctl.entries("box1")) == {"box1.j1", "box1.epoch"}
    assert await ctl.entries("box2") == {"box2.j2": b'{"n": 2}'}
    assert len(await ctl.entries()) == 3
    await ctl.delete("box2.j2")
    await ctl.delete("box2.never")
    assert await ctl.get("box2.j2") is None
    assert await ctl.entries("box2") == {}


async def test_many_keys_are_listed_whole(bus_for, streams) -> None:
    ctl = (await bus_for("scheduler")).control()
    for n in range(300):
        await ctl.put(f"box1.j{n}", {"n": n, "pad": "x" * 500})
    entries = await (await bus_for("agent", "box1")).control().entries("box1")
    assert {k: json.loads(v)["n"] for k, v in entries.items()} == {
        f"box1.j{n}": n for n in range(300)
    }


async def test_a_watch_gives_all_keys_then_changes(bus_for, streams) -> None:
    scheduler, agent = await bus_for("scheduler"), await bus_for("agent", "box1")
    ctl, seen = scheduler.control(), Seen()
    await ctl.put("box1.j1", {"n": 1})
    await ctl.put("box2.j9", {"n": 9})
    watch = await agent.control().watch("box1", seen)
    assert seen.now == {"box1.j1": 1}
    await ctl.put("box1.j1", {"n": 2})
    await ctl.put("box1.j2", {"n": 3})
    await eventually(lambda: seen.now == {"box1.j1": 2, "box1.j2": 3})
    await ctl.delete("box1.j1")
    await eventually(lambda: seen.now == {"box1.j2": 3})
    await watch.close()
    assert not agent.connection.subscriptions


async def test_a_watch_survives_a_restart_and_learns_what_it_missed(
    broker, bus_for, streams
) -> None:
    scheduler, agent = await bus_for("scheduler"), await bus_for("agent", "box1")
    ctl, seen = scheduler.control(), Seen()
    await ctl.put("box1.gone", {"n": 0})
    await ctl.put("box1.kept", {"n": 1})
    await agent.control().watch("box1", seen)
    # Hold the agent's link down while the state changes, as a broken network would.
    link = agent.connection._relink

    async def no_link() -> None:
        raise OSError("no route")

    agent.connection._relink = no_link
    await broker.restart()
    await scheduler.connection.wait_connected(60)
    await ctl.delete("box1.gone")
    await ctl.put("box1.kept", {"n": 2})
    await ctl.put("box1.new", {"n": 3})
    assert seen.now == {"box1.gone": 0, "box1.kept": 1}
    agent.connection._relink = link
    await eventually(lambda: seen.now == {"box1.kept": 2, "box1.new": 3}, timeout=15)
    await ctl.put("box1.new", {"n": 4})
    await eventually(lambda: seen.now["box1.new"] == 4)


async def test_a_wiped_bucket_empties_the_watch_and_changes_the_epoch(
    broker, bus_for, streams
) -> None:
    scheduler, agent = await bus_for("scheduler"), await bus_for("agent", "box1")
    ctl, seen = scheduler.control(), Seen()
    await ctl.put("box1.j", {"n": 1})
    await agent.control().watch("box1", seen)
    epoch = await ctl.epoch()
    broker.kill()
    broker.wipe()
    await broker.start()
    await scheduler.connection.wait_connected(60)
    with pytest.raises(StreamMissing):
        await ctl.epoch()
    assert seen.now == {"box1.j": 1}
    await ensure_streams(scheduler, store_mib=64)
    assert await ctl.epoch() != epoch
    await eventually(lambda: seen.now == {})
    await ctl.put("box1.j", {"n": 2})
    await eventually(lambda: seen.now == {"box1.j": 2})


async def test_a_failing_handler_does_not_end_the_watch(bus_for, streams) -> None:
    scheduler, agent = await bus_for("scheduler"), await bus_for("agent", "box1")
    got: list[str] = []

    async def fragile(key: str, value: bytes | None) -> None:
        got.append(key)
        if len(got) == 1:
            raise RuntimeError("defect")

    await agent.control().watch("box1", fragile)
    await scheduler.control().put("box1.a", {})
    await scheduler.control().put("box1.b", {})
    await eventually(lambda: got == ["box1.a", "box1.b"])


async def test_a_watch_may_start_while_the_broker_is_away(broker, bus_for, streams) -> None:
    scheduler, agent = await bus_for("scheduler"), await bus_for("agent", "box1")
    seen = Seen()
    await scheduler.control().put("box1.j", {"n": 5})
    broker.kill()
    await eventually(lambda: not agent.is_connected)
    watch = await agent.control().watch("box1", seen, timeout=0.1)
    await broker.start()
    await eventually(lambda: seen.now == {"box1.j": 5})
    await watch.close()
