"""Composition root: settings → database, bus, clock → Loop. `python -m services.scheduler`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from datetime import timedelta
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.scheduler.core.state import Limits
from services.scheduler.loop import Loop
from shared.bus import Bus, BusError
from shared.bus.credentials import bus_config
from shared.clock import Clock, SystemClock, iso
from shared.db import Database
from shared.db.engine import migrate
from shared.log import configure, logger
from shared.runs import write_atomic_json
from shared.settings import Settings

HEALTH_SECONDS = 5.0
MIGRATIONS = Path(__file__).parent / "migrations"
log = logger("scheduler.main")


class SchedulerSettings(BaseSettings):
    """What only the scheduler reads (environment prefix TRAINYARD_SCHEDULER_); seconds where no unit is named."""

    model_config = SettingsConfigDict(
        env_prefix="TRAINYARD_SCHEDULER_", extra="ignore", frozen=True
    )

    lease_ttl: float = Field(default=30.0, gt=0)
    grace: float = Field(default=5.0, ge=0)
    stop_after: float = Field(default=600.0, gt=0)
    kill_grace: float = Field(default=30.0, gt=0)
    requeue_margin: float = Field(default=30.0, ge=3)
    """At least what a shim needs to notice: it looks every 2 s."""
    lost_after_hours: float = Field(default=24.0, gt=0)

    @property
    def limits(self) -> Limits:
        """Return them as the core takes them."""
        return Limits(
            lease_ttl=self.lease_ttl,
            grace=self.grace,
            stop_after=self.stop_after,
            kill_grace=self.kill_grace,
            requeue_margin=self.requeue_margin,
            lost_after=timedelta(hours=self.lost_after_hours),
        )


def open_database(settings: Settings) -> Database:
    """Return the scheduler's database, migrated: `scheduler.db` below home, or the schema `scheduler`."""
    url = settings.database_url
    if url is None or url.startswith("sqlite"):
        url = f"sqlite:///{settings.home / 'scheduler.db'}"
    database = Database(url, synchronous="FULL", schema="scheduler")
    migrate(database, MIGRATIONS)
    return database


async def connect(settings: Settings, stopping: asyncio.Event) -> Bus | None:
    """Wait for the broker; None when told to stop first."""
    told = ""
    while not stopping.is_set():
        try:
            return await Bus.connect(bus_config(settings, "scheduler"), timeout=5)
        except (BusError, FileNotFoundError) as error:
            if str(error) != told:
                told = str(error)
                log.warning("waiting_for_broker", error=told[:200])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await stopping.wait()
    return None


async def serve(settings: Settings, own: SchedulerSettings, clock: Clock) -> None:
    """Run until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    running = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, stopping.set)
    health = asyncio.create_task(_health(settings.home / "run" / "scheduler.json", clock))
    database = await asyncio.to_thread(open_database, settings)
    bus = await connect(settings, stopping)
    try:
        if bus is not None:
            loop = Loop(bus, database, clock, own.limits, store_mib=settings.nats_store_mib)
            stop = asyncio.create_task(_stop_when(stopping, loop))
            try:
                await loop.run()
            finally:
                stop.cancel()
    finally:
        health.cancel()
        (settings.home / "run" / "scheduler.json").unlink(missing_ok=True)
        if bus is not None:
            await bus.close()
        await asyncio.to_thread(database.close)


async def _stop_when(stopping: asyncio.Event, loop: Loop) -> None:
    await stopping.wait()
    loop.stop()


async def _health(path: Path, clock: Clock) -> None:
    """Say every few seconds that this process lives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        document = {"pid": os.getpid(), "time": iso(clock.now())}
        with contextlib.suppress(OSError):
            await asyncio.to_thread(write_atomic_json, path, document)
        await asyncio.sleep(HEALTH_SECONDS)


def main() -> None:
    """Start the service; its exit status is 0 after SIGTERM, 1 with a traceback after what it cannot live with."""
    settings = Settings()
    configure("scheduler", settings.log_level)
    asyncio.run(serve(settings, SchedulerSettings(), SystemClock()))


__all__ = ["SchedulerSettings", "connect", "main", "open_database", "serve"]
