"""One writer, many readers: durable, in groups, each write alone in its failure; SQLite and PostgreSQL alike."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlmodel import Session

from shared.db import Database, DatabaseBusy, DatabaseFull, engine


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "test.db"


@pytest.fixture
def sqlite(file: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{file}")
    database.submit(create).result(10)
    yield database
    database.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite")
        return
    database = Database(request.getfixturevalue("new_postgres")())
    database.submit(create).result(10)
    yield database
    database.close()


def create(session: Session) -> None:
    session.execute(text("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)"))


def insert(a: int, b: str = ""):
    def work(session: Session) -> int:
        session.execute(text("INSERT INTO t VALUES (:a, :b)"), {"a": a, "b": b})
        return a

    return work


def numbers(session: Session) -> list[int]:
    return list(session.execute(text("SELECT a FROM t ORDER BY a")).scalars())


async def hold_the_writer(database: Database) -> threading.Event:
    """Make the writer wait inside a write of its own until the event is set."""
    started, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def wait(_: Session) -> None:
        loop.call_soon_threadsafe(started.set)
        assert go.wait(120)

    database.submit(wait)
    await started.wait()
    return go


async def test_a_write_returns_its_value_and_readers_see_it(database: Database) -> None:
    assert await database.write(insert(1)) == 1
    assert await database.read(numbers) == [1]


async def test_a_write_is_on_disk_when_it_returns(sqlite: Database, file: Path) -> None:
    await sqlite.write(insert(1))
    with sqlite3.connect(file) as other:
        assert other.execute("SELECT a FROM t").fetchall() == [(1,)]
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    settings = await sqlite.read(lambda s: s.execute(text("PRAGMA synchronous")).scalar())
    assert settings == 2


async def test_simultaneous_writes_share_a_commit(database: Database) -> None:
    commits = 0

    @event.listens_for(database.engine, "commit")
    def _count(_: object) -> None:
        nonlocal commits
        commits += 1

    go = await hold_the_writer(database)
    writes = [asyncio.ensure_future(database.write(insert(n))) for n in range(640)]
    await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(*writes) == list(range(640))
    assert await database.read(numbers) == list(range(640))
    assert commits <= 1 + 640 // engine.GROUP_LIMIT + 1


async def test_a_failed_write_takes_nothing_else_with_it(database: Database) -> None:
    def half(session: Session) -> None:
        insert(100)(session)
        raise RuntimeError("half done")

    def bad_sql(session: Session) -> None:
        insert(101)(session)
        # On SQLite an OperationalError, the class that a locked file has too.
        session.execute(text("SELECT * FROM no_such_table"))

    go = await hold_the_writer(database)
    works = [insert(1), half, insert(2), insert(1), insert(3), bad_sql, insert(4)]
    writes = [asyncio.ensure_future(database.write(work)) for work in works]
    await asyncio.sleep(0)
    go.set()
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [r for r in results if isinstance(r, int)] == [1, 2, 3, 4]
    assert isinstance(results[1], RuntimeError)
    assert isinstance(results[3], IntegrityError)
    assert isinstance(results[5], DBAPIError)
    assert await database.read(numbers) == [1, 2, 3, 4]


async def test_a_later_write_of_a_group_sees_the_earlier_ones(database: Database) -> None:
    go = await hold_the_writer(database)
    first = asyncio.ensure_future(database.write(insert(1)))
    second = asyncio.ensure_future(database.write(numbers))
    await asyncio.sleep(0)
    go.set()
    assert await second == [1]
    assert await first == 1


async def test_writes_are_applied_in_the_order_they_were_given(database: Database) -> None:
    def append(mark: str):
        def work(session: Session) -> None:
            session.execute(text("UPDATE t SET b = b || :m WHERE a = 1"), {"m": mark})

        return work

    await database.write(insert(1))
    marks = [chr(ord("a") + n % 26) for n in range(200)]
    await asyncio.gather(*(database.write(append(m)) for m in marks))
    stored = await database.read(lambda s: s.execute(text("SELECT b FROM t")).scalar())
    assert stored == "".join(marks)


async def test_a_reader_cannot_write_and_the_connection_recovers(database: Database) -> None:
    with pytest.raises(DBAPIError):
        await database.read(insert(1))
    with pytest.raises(DBAPIError):
        await database.read(insert(1))
    assert await database.write(insert(2)) == 2
    assert await database.read(numbers) == [2]
    assert await asyncio.gather(*(database.write(insert(n)) for n in range(10, 40))) == list(
        range(10, 40)
    )


async def test_a_reader_sees_one_moment_while_others_write(sqlite: Database) -> None:
    # On PostgreSQL each statement sees its own moment (READ COMMITTED).
    database = sqlite
    loop = asyncio.get_running_loop()
    seen_first, go = asyncio.Event(), threading.Event()

    def twice(session: Session) -> tuple[list[int], list[int]]:
        first = numbers(session)
        loop.call_soon_threadsafe(seen_first.set)
        assert go.wait(120)
        return first, numbers(session)

    reading = asyncio.ensure_future(database.read(twice))
    await seen_first.wait()
    await database.write(insert(1))
    go.set()
    assert await reading == ([], [])


async def test_a_cancelled_caller_neither_writes_nor_stops_the_writer(database: Database) -> None:
    go = await hold_the_writer(database)
    kept = asyncio.ensure_future(database.write(insert(1)))
    gone = asyncio.ensure_future(database.write(insert(2)))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    go.set()
    assert await kept == 1
    assert await database.write(insert(3)) == 3
    assert await database.read(numbers) == [1, 3]


async def test_a_full_queue_refuses_and_recovers(file: Path) -> None:
    database = Database(f"sqlite:///{file}", write_queue=3)
    await database.write(create)
    go = await hold_the_writer(database)
    waiting = [database.submit(insert(n)) for n in range(3)]
    with pytest.raises(DatabaseBusy, match="waiting"):
        database.submit(insert(9))
    with pytest.raises(DatabaseBusy):
        await database.write(insert(9))
    go.set()
    assert [await asyncio.wrap_future(w) for w in waiting] == [0, 1, 2]
    assert await database.write(insert(9)) == 9
    database.close()


async def test_a_locked_file_is_busy_for_all_and_then_free(file: Path, monkeypatch) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_SECONDS", 0.2)
    database = Database(f"sqlite:///{file}")
    await database.write(create)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    results = await asyncio.gather(
        *(database.write(insert(n)) for n in range(5)), return_exceptions=True
    )
    assert all(isinstance(r, DatabaseBusy) for r in results)
    # WAL: readers go on.
    assert await database.read(numbers) == []
    other.execute("COMMIT")
    other.close()
    assert await database.write(insert(1)) == 1
    database.close()


async def test_a_full_disk_is_said_and_loses_nothing_that_was_there(file: Path) -> None:
    database = Database(f"sqlite:///{file}")

    @event.listens_for(database.engine, "connect")
    def _small(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count=20")

    await database.write(create)
    await database.write(insert(1))
    with pytest.raises(DatabaseFull):
        await database.write(insert(2, "x" * 200_000))
    assert await database.write(insert(3)) == 3
    assert await database.read(numbers) == [1, 3]
    database.close()


async def test_closing_finishes_what_was_queued_and_refuses_the_rest(file: Path) -> None:
    database = Database(f"sqlite:///{file}")
    await database.write(create)
    go = await hold_the_writer(database)
    waiting = [database.submit(insert(n)) for n in range(100)]
    closing = asyncio.ensure_future(asyncio.to_thread(database.close))
    await asyncio.sleep(0)
    go.set()
    await closing
    assert all(w.done() for w in waiting)
    with pytest.raises(DatabaseBusy, match="closed"):
        database.submit(insert(200))
    database.close()
    with sqlite3.connect(file) as other:
        assert other.execute("SELECT count(*) FROM t").fetchone() == (100,)
    other.close()
    assert not Path(f"{file}-wal").exists()


async def test_writes_outlive_a_killed_process(file: Path) -> None:
    program = (
        "import asyncio, os, sys\n"
        "from sqlalchemy import text\n"
        "from shared.db import Database\n"
        "async def main():\n"
        "    d = Database('sqlite:///' + sys.argv[1])\n"
        "    await d.write(lambda s: s.execute(text('CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)')) and None)\n"
        "    await asyncio.gather(*(d.write(lambda s, n=n: s.execute(text(f\"INSERT INTO t VALUES ({n}, '')\")) and None)"
        " for n in range(50)))\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    result = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program, str(file)], timeout=240, check=False
    )
    assert result.returncode == -9
    database = Database(f"sqlite:///{file}")
    assert await database.read(numbers) == list(range(50))
    database.close()


async def test_rows_that_a_write_returns_stay_readable(database: Database) -> None:
    row = await database.write(
        lambda s: (insert(5, "five")(s), s.execute(text("SELECT a, b FROM t")).one())[1]
    )
    assert tuple(row) == (5, "five")
