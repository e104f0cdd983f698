"""A database with one writer thread that commits in groups, and readers in a small pool.

SQLite: WAL, always BEGIN IMMEDIATE (a deferred read that turns into a write fails at once whatever
busy_timeout says), `synchronous` FULL or NORMAL per file. PostgreSQL: the same code, one schema a service.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic_core import from_json
from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from shared.disk.levels import Shortage, shortage
from shared.disk.volumes import volume_of

T = TypeVar("T")
_FULL = ("disk is full", "no space left", "disk full")
_NO_ROOM = 1 << 20
BUSY_TIMEOUT_SECONDS = 5.0
GROUP_LIMIT = 64
"""Writes committed together: one fsync serves them all, so durable requests reach some hundreds a second."""


class DatabaseBusy(RuntimeError):
    """The write lock was not free within BUSY_TIMEOUT_SECONDS, or the queue of writes is full."""


class DatabaseFull(RuntimeError):
    """The volume of the database has no space left; nothing was written."""

    def __init__(self, message: str, shortage: Shortage | None = None) -> None:
        """Keep what lacks room, where that is a folder of this machine."""
        super().__init__(f"{message}: {shortage.en}" if shortage else message)
        self.shortage = shortage


@dataclass(slots=True)
class _Write:
    work: Callable[[Session], Any]
    done: Future[Any]


class Database:
    """One database file or schema. `write` is durable when it returns; `read` sees committed rows."""

    def __init__(
        self,
        url: str,
        *,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        schema: str | None = None,
        readers: int = 4,
        write_queue: int = 2048,
    ) -> None:
        """Open lazily; `schema` is used on PostgreSQL only and must exist (see `migrate`)."""
        self.url = url
        self.schema = schema if url.startswith("postgresql") else None
        self.folder = _folder(url)
        """Where its file lies; None for a server."""
        self.engine = _engine(url, synchronous, self.schema, readers + 1)
        self._queue: queue.Queue[_Write | None] = queue.Queue(maxsize=write_queue)
        self._closing = threading.Lock()
        self._closed = False
        self._readers = ThreadPoolExecutor(max_workers=readers, thread_name_prefix="db-read")
        self._writer = threading.Thread(target=self._write_loop, name="db-write", daemon=True)
        self._writer.start()

    async def write(self, work: Callable[[Session], T]) -> T:
        """Run `work` in the writer and return its value once committed.

        `work` runs in a savepoint: its exception rolls back only its own changes and is raised here.
        It must not do other I/O. Raises DatabaseBusy or DatabaseFull.
        """
        return await asyncio.wrap_future(self.submit(work))

    def submit(self, work: Callable[[Session], T]) -> Future[T]:
        """Queue `work` for the writer from any thread. Raises DatabaseBusy when the queue is full or closed."""
        done: Future[T] = Future()
        with self._closing:
            if self._closed:
                # Behind the end mark nobody would ever answer it.
                raise DatabaseBusy("the database is closed")
            try:
                self._queue.put_nowait(_Write(work, done))
            except queue.Full:
                raise DatabaseBusy("too many writes are waiting") from None
        return done

    async def read(self, work: Callable[[Session], T]) -> T:
        """Run `work` with a read-only session in a reader thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self.read_now, work)

    def read_now(self, work: Callable[[Session], T]) -> T:
        """Run `work` with a session that cannot write, in this thread."""
        with Session(self.engine) as session:
            try:
                _forbid_writes(session)
                return work(session)
            except DBAPIError as error:
                raise _typed(error, self.folder) from error
            finally:
                # A rollback expires what it finds in the session: rows that `work` returns must stay readable.
                session.expunge_all()
                session.rollback()

    def close(self) -> None:
        """Finish queued writes, then close every connection; later writes are refused."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._queue.put(None)
        self._writer.join(timeout=30)
        self._readers.shutdown(wait=True)
        self.engine.dispose()

    def _write_loop(self) -> None:
        stopping = False
        while not stopping:
            first = self._queue.get()
            if first is None:
                return
            group = [first]
            while len(group) < GROUP_LIMIT:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    stopping = True
                    break
                group.append(item)
            # A caller that was cancelled meanwhile wants no write; one that is cancelled from here on gets it.
            wanted = [item for item in group if item.done.set_running_or_notify_cancel()]
            if wanted:
                self._commit(wanted)

    def _commit(self, group: list[_Write]) -> None:
        """Commit all of `group` in one transaction; when the commit itself fails, fail them all."""
        results: list[tuple[_Write, Any]] = []
        failed: list[tuple[_Write, BaseException]] = []
        try:
            with Session(self.engine, expire_on_commit=False) as session:
                for item in group:
                    # Outside the `try`: when BEGIN finds the file locked, the whole group has to wait.
                    session.connection()
                    try:
                        with session.begin_nested():
                            value = item.work(session)
                    except Exception as error:
                        if not _is_sound(session, error):
                            raise
                        failed.append((item, _typed(error, self.folder)))
                    else:
                        results.append((item, value))
                session.commit()
        except Exception as error:  # noqa: BLE001 - the writer must outlive any one group
            typed = _typed(error, self.folder)
            for item in group:
                item.done.set_exception(typed)
            return
        for item, value in results:
            item.done.set_result(value)
        for item, raised in failed:
            item.done.set_exception(raised)


def _forbid_writes(session: Session) -> None:
    """Let the database refuse writes in this transaction, so that none slips past the one writer."""
    connection = session.connection()
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA query_only=ON")
    else:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")


def _is_sound(session: Session, error: Exception) -> bool:
    """Tell whether the transaction still stands after a failed write was rolled back to its savepoint."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return False
    if not session.is_active:
        return False
    driver = session.connection().connection.dbapi_connection
    # SQLite ends the whole transaction by itself when the disk is full or fails.
    return bool(getattr(driver, "in_transaction", True))


def _typed(error: Exception, folder: Path | None) -> Exception:
    """Return DatabaseBusy or DatabaseFull where that is what `error`, or what it hides, comes from."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, DBAPIError):
            message = str(found.orig).lower()
            if "locked" in message or "busy" in message or "lock timeout" in message:
                return DatabaseBusy(message)
            volume = volume_of(folder) if folder else None
            # Files beside the database that cannot grow are reported as input and output errors.
            stuck = "disk i/o error" in message or "unable to open database file" in message
            no_room = volume is not None and volume.free < _NO_ROOM
            if any(words in message for words in _FULL) or (stuck and no_room):
                return DatabaseFull(message, shortage(volume) if volume else None)
        # After SQLite has ended the transaction, the failed rollback to the savepoint hides the reason.
        found = found.__cause__ or found.__context__
    return error


def _folder(url: str) -> Path | None:
    return Path(url.removeprefix("sqlite:///")).parent if url.startswith("sqlite") else None


def _engine(url: str, synchronous: str, schema: str | None, pool: int) -> Engine:
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(
            url,
            pool_size=pool,
            json_deserializer=_json,
            connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
        )

        @event.listens_for(engine, "connect")
        def _pragmas(connection: Any, _: object) -> None:
            # Transactions are begun by us below; the driver's own BEGIN is deferred.
            connection.isolation_level = None
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute(f"PRAGMA synchronous={synchronous}")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.execute("PRAGMA temp_store=MEMORY")
            cursor.close()

        @event.listens_for(engine, "checkout")
        def _writable(connection: Any, _: object, __: object) -> None:
            # A reader may have had it before.
            connection.execute("PRAGMA query_only=OFF")

        @event.listens_for(engine, "begin")
        def _begin(connection: Any) -> None:
            writes = threading.current_thread().name == "db-write"
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine
    options = f"-c lock_timeout={int(BUSY_TIMEOUT_SECONDS * 1000)}"
    if schema:
        options += f" -c search_path={schema}"
    return create_engine(
        url,
        pool_size=pool,
        pool_pre_ping=True,
        json_deserializer=_json,
        connect_args={"options": options},
    )


def _json(text: str) -> Any:
    """Read a stored JSON value some times faster than the standard library, NaN and infinity included."""
    try:
        return from_json(text)
    except ValueError:
        # A lone surrogate, which json.dumps writes and only json.loads reads.
        return json.loads(text)


def newest_revision(script_location: Path) -> str:
    """Return the newest revision of `script_location`: files in `versions` begin with theirs, and sort by it."""
    return max(path.name.partition("_")[0] for path in (script_location / "versions").glob("*.py"))


def _stands_at(database: Database) -> str | None:
    """Return the revision noted in the database, None before its first."""
    with database.engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version", schema=database.schema):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def migrate(database: Database, script_location: Path) -> None:
    """Bring the schema to the newest Alembic revision of `script_location` (a folder with env.py).

    env.py reads `config.attributes["connection"]`. A database that stands at the newest one is left alone.
    """
    if _stands_at(database) == newest_revision(script_location):
        return
    from alembic import command  # noqa: PLC0415 - start-up only; it costs 0.2 s to import
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(script_location))
    if database.schema:
        with database.engine.begin() as connection:
            connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{database.schema}"'))
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
