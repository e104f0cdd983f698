"""From the bus to rows and frames, through duplicates, gaps, kills, wiped streams and a second projector."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text
from sqlmodel import Session

from services.api.db.positions import load_position
from services.api.monitoring.feed import Feed
from services.api.telemetry import tables
from services.api.telemetry.latest import latest
from services.api.telemetry.removal import jobs_to_empty
from services.api.telemetry.series import ChartQuery, chart
from shared.bus import ensure_streams
from shared.events.run import RunCheckpoint, RunExited, RunStarted
from shared.jobs.lifecycle import Change
from tests.conftest import TEST_STORE_MIB, BusFor, RunningBroker, eventually
from tests.integration.telemetry.conftest import Yard
from tests.unit.telemetry.messages import log, met, metric

pytestmark = pytest.mark.integration


async def test_a_run_from_assignment_to_its_last_frame(yard: Yard) -> None:
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.tell("run", RunStarted(seq=1, t=1.0, pid=1, boot_id="b", warm=True))
    await yard.tell("met", met(1, [metric(1, loss=2.0), metric(2, loss=1.5)]))
    await yard.tell("log", log(1, ["Step 1/2: loss=2.0"]))
    await yard.tell("run", RunCheckpoint(seq=2, t=1.0, step=2, path="/c/checkpoint-2"))
    await yard.job(Change.RUNNING, 2, attempt=1, host="h1")
    final = {"run": 3, "met": 3, "log": 1}
    await yard.tell("run", RunExited(seq=3, t=2.0, outcome="completed", last_seq=final))
    await yard.job(Change.COMPLETED, 3, attempt=1, host="h1", final_seq=final)
    await eventually(lambda: len(yard.frames()) == 6)
    await yard.tell("met", met(2, [metric(2, loss=1.5), metric(3, loss=1.2)]))
    await eventually(lambda: len(yard.frames()) == 8)
    frames = yard.frames()
    assert [f.seq for f in frames] == list(range(1, 9))
    assert frames[-1].data["status"] == "COMPLETED"
    assert sorted(f.type for f in frames) == sorted(
        ["status"] * 3 + ["metric"] * 3 + ["log", "checkpoint"]
    )
    reply = await yard.acked()
    assert reply.attempts[0].seq == {"run": 3, "met": 3, "log": 1, "smp": 0, "sys": 0}
    found = (await latest(yard.telemetry, ["j"]))["j"]
    assert found.latest_metrics == {"step": 3, "loss": 1.2}
    assert found.last_seq == 8
    result = yard.telemetry.read_now(lambda s: chart(s, "j", ChartQuery()))
    assert (result.x, result.series["loss"]) == ([1, 2, 3], [2.0, 1.5, 1.2])
    main = yard.main.read_now(lambda s: load_position(s, "JOBS"))
    assert main.last_seq == 3


async def test_telemetry_that_overtakes_its_assignment_waits_for_it(yard: Yard) -> None:
    """The scheduler publishes before the host can know, but the streams are read side by side."""
    for n in range(20):
        job = f"j{n}"
        await yard.job(Change.ASSIGNED, 1, job=job, attempt=1, host="h1")
        await yard.tell("met", met(1, [metric(1, loss=1.0)]), job=job)
    for n in range(20):
        await yard.until_frames(["status", "metric"], job=f"j{n}")
    assert yard.projector.stats.stale == {}


async def test_an_attempt_that_was_never_assigned_is_put_aside(yard: Yard) -> None:
    await yard.tell("met", met(1, [metric(1, loss=1.0), metric(2, loss=1.0)]))
    await yard.publish("agent", "met.h1.j.1", log(1, ["wrong subject"]))
    await eventually(lambda: yard.projector.stats.stale["unknown_attempt"] == 2)
    await eventually(lambda: yard.projector.stats.dead == {"unknown_attempt": 1, "malformed": 1})
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.tell("met", met(1, [metric(1, loss=1.0), metric(2, loss=1.0)]))
    await yard.until_frames(["status", "metric", "metric"])


async def test_garbage_is_put_aside_and_the_rest_goes_on(yard: Yard) -> None:
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    raw = yard.buses["agent"].connection
    await raw.send("met.h1.j.1", b"\xff\xfe not json")
    await raw.send("met.h1.j.1", b'{"type":"run.metrics.v1","first_seq":"x"}')
    await raw.send("met.h1.j.1", b'{"type":"run.someday.v9"}')
    await raw.send("met.h1.j.not-a-number", b'{"type":"run.metrics.v1","first_seq":1,"items":[]}')
    await yard.tell("met", met(1, [metric(1, loss=1.0)]))
    await yard.until_frames(["status", "metric"])
    # counted after the commit that makes the frames visible
    await eventually(lambda: yard.projector.stats.dead == {"undecodable": 2, "bad_subject": 1})
    rows = yard.telemetry.read_now(
        lambda s: s.execute(select(tables.dead_letter.c.reason, tables.dead_letter.c.data)).all()
    )
    assert {r.reason for r in rows} == {"undecodable", "bad_subject"}
    assert b"\xff\xfe not json" in [r.data for r in rows]


async def test_a_message_that_no_database_takes_does_not_block_the_stream(
    sqlite_yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = sqlite_yard

    def broken(session: Any, stream: str, items: list[Any]) -> None:
        if any(event.state.job == "bad" for _, _, event in items):
            raise ZeroDivisionError("a defect of ours")

    monkeypatch.setattr("services.api.projections.stream.apply_main", broken)
    for name in ("a", "bad", "b"):
        await yard.job(Change.QUEUED, 1, job=name)
    await yard.until_frames(["status"], job="b")
    assert [len(yard.frames(n)) for n in ("a", "bad", "b")] == [1, 0, 1]
    assert yard.projector.stats.dead == {"failed": 1}


async def test_a_projector_killed_at_any_point_stores_everything_once(sqlite_yard: Yard) -> None:
    yard = sqlite_yard
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    sent = 0

    async def produce() -> None:
        nonlocal sent
        for n in range(60):
            await yard.tell("met", met(n * 5 + 1, [metric(n * 5 + i, loss=1.0) for i in range(5)]))
            await yard.tell("log", log(n + 1, [f"line {n}"]))
            sent = n + 1

    producing = asyncio.create_task(produce())
    for target in (5, 15, 30, 45):
        await eventually(lambda t=target: sent >= t)
        await yard.restart()
    await producing
    await eventually(lambda: len(yard.frames()) == 1 + 300 + 60)
    frames = yard.frames()
    assert [f.seq for f in frames] == list(range(1, 362))
    assert [f.data["step"] for f in frames if f.type == "metric"] == list(range(300))
    assert [f.data["message"] for f in frames if f.type == "log"] == [
        f"line {n}" for n in range(60)
    ]


async def test_an_api_that_comes_back_after_a_job_was_moved_stores_what_was_there_before(
    yard: Yard,
) -> None:
    """However the streams are read side by side: the fence stands where the broker had it."""
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.tell("met", met(1, [metric(1, loss=1.0)]))
    await yard.until_frames(["status", "metric"])
    await yard.projector.stop()
    await yard.tell("met", met(2, [metric(2, loss=1.0)]))
    await yard.job(Change.REQUEUED, 2, attempt=1)
    await yard.job(Change.ASSIGNED, 3, attempt=2, host="h2")
    await yard.tell("met", met(3, [metric(3, loss=1.0)]))
    yard.projector = yard.new_projector()
    last = next(p for p in yard.projector._projections if p.stream == "METRICS")
    read = last._read

    async def behind_jobs() -> None:
        await eventually(lambda: yard.projector._positions["JOBS"].last_seq == 3)
        await read()

    last._read = behind_jobs  # type: ignore[method-assign]
    await yard.projector.start()
    await eventually(lambda: yard.projector.stats.stale == {"fenced": 1})
    assert [f.data["step"] for f in yard.frames() if f.type == "metric"] == [1, 2]
    assert (await yard.acked()).refused


async def test_a_wiped_broker_changes_nothing_that_was_stored(
    sqlite_yard: Yard, broker: RunningBroker, bus_for: BusFor
) -> None:
    yard = sqlite_yard
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.tell("met", met(1, [metric(1, loss=2.0)]))
    await yard.until_frames(["status", "metric"])
    broker.kill()
    broker.wipe()
    await broker.start()
    scheduler = yard.buses["scheduler"]
    await eventually(lambda: scheduler.is_connected)
    await ensure_streams(scheduler, store_mib=TEST_STORE_MIB)
    await eventually(lambda: all(b.is_connected for b in yard.buses.values()))
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.job(Change.RUNNING, 2, attempt=1, host="h1")
    await yard.tell("met", met(1, [metric(1, loss=2.0), metric(2, loss=1.0)]))
    await eventually(lambda: len(yard.frames()) == 4, timeout=20)
    assert [f.seq for f in yard.frames()] == [1, 2, 3, 4]
    assert sorted(f.type for f in yard.frames()) == ["metric", "metric", "status", "status"]


async def test_it_waits_for_an_absent_broker_and_goes_on(
    sqlite_yard: Yard, broker: RunningBroker
) -> None:
    yard = sqlite_yard
    await eventually(lambda: yard.projector.ready)
    broker.kill()
    await eventually(lambda: not yard.projector.ready, timeout=15)
    await broker.start()
    await eventually(lambda: all(b.is_connected for b in yard.buses.values()))
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.until_frames(["status"], timeout=15)
    await eventually(lambda: yard.projector.ready, timeout=15)


async def test_the_newer_of_two_projectors_goes_on_alone(yard: Yard) -> None:
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.until_frames(["status"])
    second = yard.new_projector()
    await second.start()
    for n in range(5):
        await yard.tell("met", met(n + 1, [metric(n, loss=1.0)]))
    await eventually(yard.projector.superseded.is_set)
    await yard.until_frames(["status", *["metric"] * 5])
    assert not yard.projector.ready
    assert not second.superseded.is_set()
    await second.stop()


async def test_streams_are_purged_up_to_what_is_stored(
    sqlite_yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = sqlite_yard
    monkeypatch.setattr("services.api.projections.upkeep.PURGE_SECONDS", 0.1)
    await yard.restart()
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    for n in range(3):
        await yard.tell("met", met(n + 1, [metric(n, loss=1.0)]))
    await yard.until_frames(["status", *["metric"] * 3])
    api = yard.buses["api"]

    async def purged() -> bool:
        state = await api.stream_state("METRICS")
        return state.messages == 0 and state.last_seq == 3

    await eventually(purged)
    assert (await api.stream_state("JOBS")).messages == 1
    await yard.tell("met", met(4, [metric(4, loss=1.0)]))
    await yard.until_frames(["status", *["metric"] * 4])
    await eventually(lambda: set(yard.projector.lag().values()) == {0})


async def test_the_terminal_frame_stops_waiting_by_the_clock(sqlite_yard: Yard) -> None:
    yard = sqlite_yard
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.job(Change.FAILED, 2, attempt=1, host="h1", final_seq={"met": 4})
    await eventually(lambda: yard.projector._positions["JOBS"].last_seq == 2)
    assert [f.type for f in yard.frames()] == ["status"]
    yard.clock.ahead = 31.0
    await yard.until_frames(["status", "gap", "status"])
    await yard.restart()
    assert [f.type for f in yard.frames()] == ["status", "gap", "status"]


async def test_a_job_whose_last_frame_waits_keeps_its_telemetry_over_a_restart(yard: Yard) -> None:
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.tell("met", met(1, [metric(1, loss=1.0)]))
    await yard.job(Change.COMPLETED, 2, attempt=1, host="h1", final_seq={"met": 2})
    await eventually(lambda: yard.projector._positions["JOBS"].last_seq == 2)
    await yard.until_frames(["status", "metric"])
    await yard.restart()
    emptied: list[str] = yard.telemetry.read_now(jobs_to_empty)
    assert emptied == []
    await yard.tell("met", met(2, [metric(2, loss=0.5)]))
    await yard.until_frames(["status", "metric", "metric", "status"])


async def test_a_deleted_job_is_emptied(yard: Yard) -> None:
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.tell("met", met(1, [metric(n, loss=1.0) for n in range(4100)]))
    await yard.tell("log", log(1, ["x"] * 3000))
    await eventually(lambda: len(yard.frames()) == 7101)
    await yard.job(Change.COMPLETED, 2, attempt=1, host="h1")
    await yard.job(Change.DELETED, 3, attempt=1, deleted=True)

    def rows() -> list[int]:
        parts = (tables.record, tables.metric_line, tables.metric_chunk)
        return yard.telemetry.read_now(
            lambda s: [s.execute(select(func.count()).select_from(t)).scalar_one() for t in parts]
        )

    await eventually(lambda: rows() == [0, 0, 0])
    await yard.tell("log", log(3001, ["late"]))
    await eventually(lambda: yard.projector.stats.stale["deleted"] == 1)
    reply = await yard.acked()
    assert (reply.attempts, [c.attempt for c in reply.refused]) == ((), [1])


async def test_numbers_go_on_above_a_lost_telemetry_database(sqlite_yard: Yard) -> None:
    yard = sqlite_yard
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.until_frames(["status"])
    await yard.projector.stop()
    yard.telemetry.close()
    path = yard.telemetry_url.removeprefix("sqlite:///")
    for suffix in ("", "-wal", "-shm"):
        Path(path + suffix).unlink(missing_ok=True)
    yard.telemetry = yard.open_telemetry()
    yard.projector = yard.new_projector()
    await yard.projector.start()
    await yard.until_frames(["status"])
    assert yard.frames()[0].seq > 1_000_000


async def test_a_client_sees_live_frames_within_milliseconds(sqlite_yard: Yard) -> None:
    yard = sqlite_yard
    loop = asyncio.get_running_loop()
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.until_frames(["status"])
    feed = Feed(yard.telemetry, yard.hub.subscribe("j"), "j", 1)
    frames = feed.frames()
    took, starved = [], []
    for n in range(60):
        waiting = asyncio.ensure_future(anext(frames))
        began = loop.time()
        await yard.tell("met", met(n + 1, [metric(n, loss=1.0)]))
        assert (await waiting).data["step"] == n
        took.append(loop.time() - began)
        began = loop.time()
        await yard.buses["agent"].stream_state("METRICS")  # there and back, and nothing stored
        starved.append(loop.time() - began)
    print(f"publish to frame: {p95(took) * 1e3:.1f} ms, there and back {p95(starved) * 1e3:.1f} ms")
    assert p95(took) < 0.1 + 4 * p95(starved)  # a millisecond or two on a quiet machine


def p95(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.95)]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write lock is waited for only so long."""
    monkeypatch.setattr("shared.db.engine.BUSY_TIMEOUT_SECONDS", 0.1)


async def test_a_busy_database_is_waited_for(impatient: None, sqlite_yard: Yard) -> None:
    yard = sqlite_yard
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.until_frames(["status"])
    with yard.telemetry.engine.connect() as blocker:
        blocker.exec_driver_sql("ROLLBACK")
        blocker.exec_driver_sql("BEGIN IMMEDIATE")
        await yard.tell("met", met(1, [metric(1, loss=1.0)]))
        await eventually(lambda: yard.projector.stats.retries["METRICS"] > 0, timeout=15)
        assert len(yard.frames()) == 1
        blocker.exec_driver_sql("ROLLBACK")
        blocker.execute(text("SELECT 1"))
    await yard.until_frames(["status", "metric"], timeout=15)


async def test_the_migrated_schema_is_the_declared_one(yard: Yard) -> None:
    def differences(session: Session) -> list[Any]:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        return list(compare_metadata(context, tables.METADATA))

    assert yard.telemetry.read_now(differences) == []
