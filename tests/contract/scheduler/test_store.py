"""What is stored is what was decided: the cluster loaded from SQLite or PostgreSQL is the one in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from services.scheduler import leader, relay_rows, store
from services.scheduler.core.decisions import Decision
from services.scheduler.core.inputs import Place
from services.scheduler.core.state import ClusterState, Job
from services.scheduler.leader import LeadershipLost
from services.scheduler.main import open_database
from services.scheduler.models import Table
from services.scheduler.store import Position
from shared.db import Database
from shared.settings import Settings
from tests.unit.scheduler.build import World, a_beat, job_id
from tests.unit.scheduler.test_properties import Chaos, op

pytestmark = pytest.mark.contract


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
)
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    home: Path = tmp_path_factory.mktemp("home")
    url: str | None = None
    if request.param == "postgres":
        server = request.getfixturevalue("postgres_server")
        url = server.replace("postgresql://", "postgresql+psycopg://")
    opened = open_database(Settings(home=home, database_url=url))
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def empty(database: Database) -> None:
    clear(database)


def clear(database: Database) -> None:
    def work(session: Any) -> None:
        for table in Table.metadata.sorted_tables:
            session.execute(table.delete())

    write(database, work)


def write(database: Database, work: Callable[[Any], Any]) -> Any:
    return database.submit(work).result(timeout=120)


def stored(database: Database, decisions: list[Decision], position: Position | None = None) -> None:
    write(database, lambda s: store.apply(s, decisions, position, {}))


def plain(job: Job) -> Job:
    """A job without what a restart may forget: since when it is missed, and deleted checkpoints."""
    run = replace(job.run, missing_since=None) if job.run else None
    alive = sorted((c for c in job.checkpoints if not c.deleted), key=lambda c: (c.host, c.step))
    return replace(job, run=run, checkpoints=tuple(alive))


def check_same(loaded: ClusterState, memory: ClusterState) -> None:
    live = {j.id: plain(j) for j in memory.jobs.values() if not j.is_ended}
    assert {k: plain(j) for k, j in loaded.jobs.items() if not j.is_ended} == live
    for host_id, host in memory.hosts.items():
        got = loaded.hosts[host_id]
        assert (got.label, got.drained, got.forgotten, got.lost, got.online) == (
            host.label,
            host.drained,
            host.forgotten,
            host.lost,
            host.online,
        )
        assert (got.instance, got.boot_id, got.req_n) == (host.instance, host.boot_id, host.req_n)
        assert got.runs == host.runs
        assert got.stops == host.stops
    assert loaded.held == memory.held
    assert loaded.next_order == memory.next_order
    assert loaded.queue.standing.keys() == memory.queue.standing.keys()


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(operations=st.lists(op, min_size=10, max_size=50))
def test_a_restart_after_any_step_finds_the_same_cluster(
    database: Database, operations: list[tuple[Any, ...]]
) -> None:
    clear(database)
    world = Chaos()
    for one in operations:
        before = len(world.decisions)
        world.apply(one)
        stored(database, world.decisions[before:])
    loaded = database.read_now(lambda s: store.load(s, world.now, world.state.limits))
    check_same(loaded, world.state)


def test_position_outbox_and_desired_come_and_go_together(database: Database) -> None:
    world = World()
    world.do(a_beat("box1", 1))
    world.submit(1)
    world.place()
    position = Position("RUNS", "e1", 41)
    stored(database, world.decisions, position)
    assert database.read_now(lambda s: store.position(s, "RUNS")) == position
    assert database.read_now(lambda s: store.position(s, "REQUESTS")).epoch == ""
    events = database.read_now(lambda s: relay_rows.unpublished(s, 0, 10))
    assert [e.job for e in events] == [job_id(1)] * 2
    assert database.read_now(lambda s: relay_rows.unwritten(s, "c1", 10)) == []
    write(database, lambda s: relay_rows.mark_published(s, [events[0].id], "j1"))
    assert database.read_now(lambda s: relay_rows.unwritten(s, "c1", 10)) == []
    write(database, lambda s: relay_rows.mark_published(s, [events[1].id], "j1"))
    (desired,) = database.read_now(lambda s: relay_rows.unwritten(s, "c1", 10))
    assert (desired.host, desired.job, desired.version) == ("box1", job_id(1), 1)
    write(database, lambda s: relay_rows.mark_written(s, [desired], "c1"))
    assert database.read_now(lambda s: relay_rows.unwritten(s, "c1", 10)) == []
    assert len(database.read_now(lambda s: relay_rows.unwritten(s, "c2", 10))) == 1
    assert write(database, lambda s: relay_rows.publish_again(s, "j2")) == 2
    assert len(database.read_now(lambda s: relay_rows.unpublished(s, 0, 10))) == 2


def test_a_key_that_changed_while_it_was_written_is_written_again(database: Database) -> None:
    world = World()
    world.do(a_beat("box1", 1))
    world.running(1)
    stored(database, world.decisions)
    ids = [e.id for e in database.read_now(lambda s: relay_rows.unpublished(s, 0, 10))]
    write(database, lambda s: relay_rows.mark_published(s, ids, "j1"))
    (first,) = database.read_now(lambda s: relay_rows.unwritten(s, "c1", 10))
    before = len(world.decisions)
    world.exited(1)
    stored(database, world.decisions[before:])
    write(database, lambda s: relay_rows.mark_written(s, [first], "c1"))
    ids = [e.id for e in database.read_now(lambda s: relay_rows.unpublished(s, 0, 10))]
    write(database, lambda s: relay_rows.mark_published(s, ids, "j1"))
    (second,) = database.read_now(lambda s: relay_rows.unwritten(s, "c1", 10))
    assert (second.version, second.entry) == (2, None)
    write(database, lambda s: relay_rows.mark_written(s, [second], "c1"))
    assert database.read_now(relay_rows.all_desired) == {}


def test_old_events_are_pruned_and_unfinished_ones_kept(database: Database) -> None:
    world = World()
    world.do(a_beat("box1", 1))
    world.running(1)
    world.exited(1)
    world.submit(2)
    stored(database, world.decisions)
    rows = database.read_now(lambda s: relay_rows.unpublished(s, 0, 100))
    now = world.now.wall.timestamp()
    assert write(database, lambda s: relay_rows.prune(s, now + 30 * 86_400)) == 0
    write(database, lambda s: relay_rows.mark_published(s, [r.id for r in rows], "j1"))
    assert write(database, lambda s: relay_rows.prune(s, now + 86_400)) == 0
    gone = write(database, lambda s: relay_rows.prune(s, now + 30 * 86_400))
    assert gone == sum(r.job == job_id(1) for r in rows)


def test_a_late_leader_stores_nothing(database: Database) -> None:
    lead = write(database, lambda s: leader.acquire(s, "a/b/1/1", 100.0, False))
    assert write(database, lambda s: leader.acquire(s, "c/d/1/1", 101.0, False)) is None
    other = write(database, lambda s: leader.acquire(s, "c/d/1/1", 200.0, False))
    assert (lead.epoch, other.epoch) == (1, 2)
    world = World()
    world.submit(1)

    def work(session: Any) -> None:
        leader.fence(session, lead, 201.0)
        store.apply(session, world.decisions, None, {})

    with pytest.raises(LeadershipLost):
        write(database, work)
    with pytest.raises(LeadershipLost):
        database.read_now(lambda s: leader.check(s, lead))
    database.read_now(lambda s: leader.check(s, other))
    assert database.read_now(lambda s: s.execute(text("SELECT count(*) FROM jobs")).scalar()) == 0
    write(database, lambda s: leader.release(s, other))
    assert write(database, lambda s: leader.acquire(s, "a/b/1/1", 202.0, False)).epoch == 3


def test_ended_jobs_are_loaded_when_something_refers_to_them(database: Database) -> None:
    world = World()
    world.do(a_beat("box1", 1))
    world.running(1)
    world.checkpoint(1, 20)
    world.exited(1)
    world.running(3)
    world.exited(3)
    world.submit(2, model_path=f"job:{job_id(1)}", num_gpus=2)
    world.do(Place())
    stored(database, world.decisions)
    loaded = database.read_now(lambda s: store.load(s, world.now, world.state.limits))
    assert loaded.jobs.keys() == {job_id(1), job_id(2)}
    assert [c.step for c in loaded.jobs[job_id(1)].checkpoints] == [20]
    (ended,) = database.read_now(lambda s: store.load_jobs(s, [job_id(3), job_id(99)]))
    assert ended.is_ended
