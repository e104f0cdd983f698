"""Least privilege on the real broker: what each identity may not do is refused by name, not by silence."""

from __future__ import annotations

import time

import pytest

from shared.bus import Bus, BusUnavailable, PermissionDenied, wire
from shared.bus.credentials import bus_config, create_host_key
from shared.bus.keys import check_host_id, check_public_key
from shared.bus.permissions import SERVICES, of_host, of_service
from shared.bus.streams import STREAMS
from shared.events.calls import ControlEntry
from shared.events.run import RunCollected
from tests.conftest import PATIENCE

pytestmark = pytest.mark.contract
REFUSED_SECONDS = 3.0
"""A connection that is refused is tried until then: long enough for one try on a busy machine."""
FACT = RunCollected(seq=1, t=0.0)

FORBIDDEN = [
    ("agent", "run.box2.job.1"),
    ("agent", "met.box2.job.1"),
    ("agent", "log.box2.job.1"),
    ("agent", "smp.box2.job.1"),
    ("agent", "job.x"),
    ("agent", "req.job.x"),
    ("agent", "$KV.ctl.box1.job"),
    ("agent", "rw.job.judge"),
    ("agent", "hb.box2"),
    ("agent", "ack.box2"),
    ("agent", "secret.box2"),
    ("agent", "cmd.box1.read_file"),
    ("agent", "run.BOX2.Job.1"),
    ("api", "job.x"),
    ("api", "$KV.ctl.box1.job"),
    ("api", "run.box1.job.1"),
    ("scheduler", "req.job.x"),
    ("scheduler", "met.box1.job.1"),
    ("scheduler", "cmd.box1.read_file"),
    ("reward", "req.job.x"),
    ("reward", "alert.high.rule.job"),
    ("up", "req.job.x"),
    ("up", "$KV.ctl.box1.job"),
]


async def test_publishing_outside_is_named_at_once(bus_for, streams, envelope) -> None:
    buses = {role: await bus_for(role) for role in SERVICES}
    buses["agent"] = await bus_for("agent", "box1")
    start = time.monotonic()
    for role, subject in FORBIDDEN:
        with pytest.raises(PermissionDenied) as caught:
            await buses[role].publish(subject, FACT, envelope(), msg_id="1", timeout=5)
        assert caught.value.subject == subject
    assert time.monotonic() - start < 5 * PATIENCE
    assert all(bus.is_connected for bus in buses.values())


async def test_what_is_permitted_still_works_beside_what_is_not(bus_for, streams, envelope) -> None:
    agent = await bus_for("agent", "box1")
    good, bad, good2 = await agent.publish_many(
        [
            ("run.box1.job.1", FACT, envelope(), "1"),
            ("run.box2.job.1", FACT, envelope(), "1"),
            ("run.box1.job.1", FACT, envelope(), "2"),
        ]
    )
    assert isinstance(bad, PermissionDenied)
    assert (good.seq, good2.seq) == (1, 2)  # type: ignore[union-attr]


async def test_a_host_reads_only_its_own_desired_states(bus_for, streams) -> None:
    scheduler, agent = await bus_for("scheduler"), await bus_for("agent", "box1")
    entry = ControlEntry(epoch="e", job="j", attempt=1, desired="run")
    await scheduler.control().put("box1.j", entry)
    await scheduler.control().put("box2.j", entry)
    own = agent.control()
    assert await own.get("box1.j") is not None
    assert list(await own.entries("box1")) == ["box1.j"]
    assert await own.epoch() == (await scheduler.stream_state("KV_ctl")).epoch

    async def ignore(key: str, value: bytes | None) -> None: ...

    for attempt in (
        own.get("box2.j"),
        own.entries("box2"),
        own.entries(""),
        own.watch("box2", ignore),
    ):
        with pytest.raises(PermissionDenied):
            await attempt
    with pytest.raises(PermissionDenied):
        await own.put("box1.j", entry)
    with pytest.raises(PermissionDenied):
        await own.delete("box1.j")


async def test_a_host_cannot_listen_beyond_itself(bus_for, streams) -> None:
    agent = await bus_for("agent", "box1")

    async def ignore(subject: str, data: bytes) -> None: ...

    for subject in (
        ">",
        "_INBOX.>",
        "_INBOX.api.>",
        "_INBOX.box2.>",
        "cmd.box2.>",
        "run.>",
        "job.*",
        "hb.*",
        "$KV.>",
    ):
        with pytest.raises(PermissionDenied) as caught:
            await agent.listen(subject, ignore)
        assert caught.value.subject == subject
    listening = await agent.listen("cmd.box1.>", ignore)
    await listening.close()


async def test_nobody_deletes_streams_and_a_host_administers_nothing(bus_for, streams) -> None:
    buses = [await bus_for(role) for role in SERVICES]
    buses.append(await bus_for("agent", "box1"))
    for bus in buses:
        for spec in STREAMS:
            with pytest.raises(PermissionDenied):
                await wire.call(bus.connection, f"STREAM.DELETE.{spec.name}")
    for endpoint in (
        "STREAM.PURGE.METRICS",
        "STREAM.UPDATE.METRICS",
        "STREAM.CREATE.MINE",
        "STREAM.LIST",
        "CONSUMER.LIST.RUNS",
        "CONSUMER.CREATE.RUNS.mine.run.>",
        "CONSUMER.CREATE.KV_ctl.mine",
        "CONSUMER.CREATE.KV_ctl",
        "CONSUMER.DELETE.KV_ctl.mine",
        "CONSUMER.MSG.NEXT.RUNS.mine",
        "STREAM.MSG.GET.KV_ctl",
        "STREAM.SNAPSHOT.JOBS",
        "ACCOUNT.PURGE.APP",
    ):
        with pytest.raises(PermissionDenied):
            await wire.call(buses[-1].connection, endpoint, {})


async def test_an_unknown_key_is_refused_as_such(broker, home) -> None:
    create_host_key(home, "stranger")
    with pytest.raises(PermissionDenied):
        await Bus.connect(bus_config(broker.settings, "agent", "stranger"), timeout=REFUSED_SECONDS)


async def test_a_broker_that_is_not_there_is_unavailable(broker) -> None:
    broker.stop()
    start = time.monotonic()
    with pytest.raises(BusUnavailable):
        await Bus.connect(bus_config(broker.settings, "api"), timeout=0.5)
    assert time.monotonic() - start < 3 * PATIENCE


@pytest.mark.parametrize(
    "bad",
    ["", "a.b", "*", ">", "a b", "a\n", "A", 'x" ] }', "api", "sys", "a" * 64, "../x", "$SYS"],
)
def test_a_host_id_that_is_no_safe_token_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="host id"):
        check_host_id(bad)


@pytest.mark.parametrize(
    "bad", ["", "SUAAA", "U" * 10, "u" + "A" * 55, "U" + "A" * 55 + "\n", "U" + "a" * 55]
)
def test_a_key_that_is_no_public_user_key_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="nkey"):
        check_public_key(bad)


def test_a_mistyped_key_is_refused_before_the_broker_sees_it(tmp_path) -> None:
    good = create_host_key(tmp_path, "box1")
    assert check_public_key(good) == good
    other = "A" if good[20] != "A" else "B"
    with pytest.raises(ValueError, match="nkey"):
        check_public_key(good[:20] + other + good[21:])


def test_each_subject_tree_has_one_writer() -> None:
    trees = {
        "req": ["api"],
        "job": ["scheduler"],
        "host": ["scheduler"],
        "$KV": ["scheduler"],
        "rw": ["reward"],
        "alert": ["api"],
        "cmd": ["api"],
        **{key: ["agent"] for key in ("run", "met", "log", "smp", "hb", "ack", "secret")},
    }
    permissions = {role: of_service(role) for role in SERVICES} | {"agent": of_host("box1")}
    for tree, writers in trees.items():
        found = [
            n for n, p in permissions.items() if any(s.split(".")[0] == tree for s in p.publish)
        ]
        assert found == writers, tree
    assert not any(
        s == ">" or s.startswith("_INBOX.>")
        for p in permissions.values()
        for s in (*p.publish, *p.subscribe)
    )
