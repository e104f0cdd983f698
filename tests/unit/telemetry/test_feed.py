"""No frame is lost or doubled for a client, whatever the interleaving of commits, announcements and reading."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.api.monitoring.feed import Feed
from services.api.monitoring.hub import (
    QUEUE_LIMIT,
    Hub,
    Subscription,
    compressed,
    first_seq,
)
from services.api.telemetry import chunks, tables
from services.api.telemetry.frames import Frame, frame_of_line, frame_of_record
from services.api.telemetry.ledger import Ledger
from services.api.telemetry.records import log_row
from shared.db import Database

KINDS = st.sampled_from(["status", "log", "metric", "checkpoint", "sample"])


def frame(seq: int, type_: str = "log") -> Frame:
    return Frame(seq, type_, 0.0, {})


class Writer:
    """Commits log lines and metric lines as the projector does, announcing some of them."""

    def __init__(self, database: Database, hub: Hub) -> None:
        self.database = database
        self.hub = hub
        self.head = 0

    async def commit(self, count: int, announce: bool, ends: bool = False) -> None:
        def work(session: Any) -> list[Frame]:
            ledger = Ledger(session, ["j"])
            live = ledger.job("j")
            for n in range(count):
                if n % 3 == 2:
                    line = {"attempt": 1, "step": float(live.frame_seq), "epoch": None, "time": 0.0}
                    ledger.add_line(live, {**line, "body": '{"loss":1.0}'}, 1)
                else:
                    ledger.add_record(live, 1, log_row({"message": "m"}, 0.0))
            if ends:
                ledger.end(live, live.frame_seq)
            ledger.flush()
            written = ledger.written["j"]
            made = [frame_of_record(row) for row in written.records]
            made += [frame_of_line(row) for row in written.lines]
            self.head = live.frame_seq
            return sorted(made, key=lambda f: f.seq)

        frames = await self.database.write(work)
        frames[-1].ends = ends
        if announce and self.hub.wants("j"):
            self.hub.publish("j", frames)

    async def seal(self) -> None:
        await self.database.write(lambda s: chunks.seal(s, 1))


ACTION = st.one_of(
    st.tuples(st.just("commit"), st.integers(1, 7)),
    st.tuples(st.just("silent"), st.integers(1, 7)),
    st.tuples(st.just("seal"), st.just(0)),
    st.tuples(st.just("yield"), st.integers(1, 5)),
)


@settings(max_examples=25, deadline=None)
@given(
    before=st.lists(ACTION, max_size=5),
    after=st.lists(ACTION, max_size=15),
    since=st.integers(0, 10),
)
def test_every_frame_after_since_arrives_once_and_in_order(
    before: list[tuple[str, int]], after: list[tuple[str, int]], since: int
) -> None:
    async def scenario(database: Database) -> None:
        hub = Hub()
        writer = Writer(database, hub)

        async def do(name: str, count: int) -> None:
            if name in {"commit", "silent"}:
                await writer.commit(count, announce=name == "commit")
            elif name == "seal":
                await writer.seal()
            else:
                for _ in range(count):
                    await asyncio.sleep(0)

        await writer.commit(1, announce=True)
        for action in before:
            await do(*action)
        start = min(since, writer.head)
        subscription = hub.subscribe("j")
        feed = Feed(database, subscription, "j", start)
        got: list[int] = []

        async def read() -> None:
            got.extend([found.seq async for found in feed.frames()])

        reading = asyncio.create_task(read())
        for action in after:
            await do(*action)
        await writer.commit(1, announce=True, ends=True)
        async with asyncio.timeout(60):
            await reading
        assert got == list(range(start + 1, writer.head + 1))

    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder) / 't.db'}", synchronous="NORMAL")
        try:
            tables.METADATA.create_all(database.engine)
            asyncio.run(scenario(database))
        finally:
            database.close()


async def test_a_commit_that_nobody_announced_is_found(
    telemetry: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.monitoring.feed.RECHECK_SECONDS", 0.05)
    hub = Hub()
    writer = Writer(telemetry, hub)
    await writer.commit(2, announce=False)
    feed = Feed(telemetry, hub.subscribe("j"), "j", 2)
    frames = feed.frames()
    waiting = asyncio.ensure_future(anext(frames))
    await asyncio.sleep(0)
    await writer.commit(1, announce=False)
    async with asyncio.timeout(60):
        assert (await waiting).seq == 3
    await frames.aclose()


async def test_a_feed_of_an_ended_job_stops_after_what_was_missed(telemetry: Database) -> None:
    hub = Hub()
    writer = Writer(telemetry, hub)
    await writer.commit(5, announce=True, ends=True)
    for since, expected in ((0, [1, 2, 3, 4, 5]), (4, [5]), (5, [])):
        feed = Feed(telemetry, hub.subscribe("j"), "j", since)
        async with asyncio.timeout(60):
            assert [f.seq async for f in feed.frames()] == expected


@given(st.lists(KINDS, min_size=1, max_size=600), st.integers(2, 128))
def test_compressing_covers_every_number_once(kinds: list[str], limit: int) -> None:
    frames = [frame(seq, kind) for seq, kind in enumerate(kinds, start=1)]
    result = compressed(frames, limit)
    assert len(result) <= limit
    covered: list[int] = []
    for entry in result:
        covered += range(first_seq(entry), entry.seq + 1)
    assert covered == list(range(1, len(kinds) + 1))


def test_a_full_queue_keeps_what_happened_and_stays_bounded() -> None:
    subscription = Subscription()
    for seq in range(1, 5001):
        subscription.put(frame(seq, "status" if seq % 1000 == 0 else "metric"))
    assert subscription.overflowed
    entries = subscription.take()
    assert len(entries) <= QUEUE_LIMIT
    assert [e.seq for e in entries if e.type == "status"] == [1000, 2000, 3000, 4000, 5000]
    gaps = [e for e in entries if e.type == "gap"]
    assert gaps[0].data == {"reason": "slow_client", "from_seq": 1, "to_seq": 999}
    subscription.caught_up()
    assert not subscription.overflowed


async def test_a_slow_client_gets_a_gap_and_can_go_on(telemetry: Database) -> None:
    hub = Hub()
    writer = Writer(telemetry, hub)
    await writer.commit(1, announce=True)
    live = Feed(telemetry, hub.subscribe("j"), "j", 1)._live()
    waiting = asyncio.ensure_future(anext(live))
    await writer.commit(3, announce=True)
    assert (await waiting).seq == 2
    for _ in range(20):
        await writer.commit(100, announce=True)
    await writer.commit(1, announce=True)
    got: list[Frame] = []
    while not got or got[-1].seq < writer.head:
        got.append(await anext(live))
    assert [f.seq for f in got[:2]] == [3, 4]
    covered = [n for f in got for n in range(first_seq(f), f.seq + 1)]
    assert covered == list(range(3, writer.head + 1))
    assert [f.type for f in got].count("gap") >= 1


def test_a_hub_forgets_who_left() -> None:
    hub = Hub()
    one, two = hub.subscribe("j"), hub.subscribe("j")
    hub.unsubscribe("j", one)
    hub.publish("j", [frame(1)])
    assert (one.take(), [f.seq for f in two.take()]) == ([], [1])
    hub.unsubscribe("j", two)
    hub.unsubscribe("j", two)
    assert not hub.wants("j")
    assert hub.watchers == 0


async def test_a_jump_of_the_numbers_is_passed_at_once(tmp_path: Path) -> None:
    """After a loss or a restore numbers go on from the clock: a client must not be walked through all of them."""
    database = Database(f"sqlite:///{tmp_path / 'telemetry.db'}")
    tables.METADATA.create_all(database.engine)
    base = 1_800_000_000_000_000

    def work(session: Any) -> None:
        ledger = Ledger(session, ["j"])
        live = ledger.job("j")
        for _ in range(3):
            ledger.add_record(live, 1, log_row({"message": "m"}, 0.0))
        live.frame_seq = base
        for step in range(700):
            line = {"attempt": 1, "step": float(step), "epoch": None, "time": 0.0}
            ledger.add_line(live, {**line, "body": '{"loss":1.0}'}, 1)
        live.frame_seq += 1_000_000
        ledger.end(live, ledger.add_record(live, 1, log_row({"message": "m"}, 0.0)))
        ledger.flush()

    await database.write(work)
    for sealed in (False, True):
        if sealed:
            await database.write(lambda s: chunks.seal(s, 1))
        feed = Feed(database, Hub().subscribe("j"), "j", 0)
        async with asyncio.timeout(60):
            seen = [f.seq async for f in feed.frames()]
        assert seen == [1, 2, 3, *range(base + 1, base + 701), base + 1_000_701]
    database.close()
