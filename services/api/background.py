"""What runs beside the routes: the link to the broker, the outbox, the projector, and answers to hosts.

REST works from the first moment; everything here begins once the broker can be reached, and goes on when it comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from services.api.calls import SECRET_PATTERN, SecretDesk
from services.api.deps import ApiServices
from services.api.outbox import OutboxRelay
from services.api.projections.runner import Projector
from services.api.repeats import Repeats
from services.api.rewards.relay import AlertRelay
from shared.bus import Bus, ensure_streams
from shared.bus.credentials import bus_config
from shared.bus.port import BusError
from shared.db import DatabaseBusy
from shared.log import logger

LOG = logger("api.background")
CONNECT_SECONDS = 5.0
RETRY_SECONDS = 1.0


class Background:
    """Entered for the life of the app: `async with Background(services): …`."""

    def __init__(self, services: ApiServices) -> None:
        """Do nothing yet."""
        self._services = services
        self._relay = OutboxRelay(services)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Start the tasks; they wait for the broker by themselves."""
        self._services.wake_outbox = self._relay.wake
        self._tasks = [
            asyncio.create_task(self._relay.run(), name="outbox"),
            asyncio.create_task(Repeats(self._services).run(), name="repeats"),
            asyncio.create_task(AlertRelay(self._services).run(), name="alerts"),
            asyncio.create_task(self._join_bus(), name="bus"),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything; what is not published or projected is so at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._services.projector is not None:
            await self._services.projector.stop()
            self._services.projector = None
        with contextlib.suppress(BusError):
            await self._services.link.bus.close()

    async def _join_bus(self) -> None:
        bus = await self._connected()
        bus.on_reconnect(self._on_reconnect)
        while self._services.projector is None:
            try:
                await self._ensure_streams(bus)
                self._services.projector = await self._projecting(bus)
                await bus.serve(SECRET_PATTERN, SecretDesk(self._services).answer)
            except (BusError, DatabaseBusy) as refused:
                LOG.warning("streams_not_ready", error=str(refused)[:300])
                await asyncio.sleep(RETRY_SECONDS)
        self._relay.wake()
        LOG.info("bus_joined")

    async def _projecting(self, bus: Bus) -> Projector:
        services = self._services
        projector = Projector(bus, services.main, services.telemetry, services.clock, services.hub)
        try:
            await projector.start()
        except BaseException:
            await projector.stop()
            raise
        return projector

    async def _connected(self) -> Bus:
        """Return the bus; tries for ever, since jobs are accepted meanwhile and `/readyz` says what lacks."""
        link = self._services.link
        with contextlib.suppress(BusError):
            return link.bus
        while True:
            try:
                config = bus_config(self._services.settings, "api")
                bus = await Bus.connect(config, timeout=CONNECT_SECONDS)
            except (BusError, OSError) as refused:
                LOG.warning("bus_away", error=str(refused)[:300])
                await asyncio.sleep(RETRY_SECONDS)
                continue
            link.attach(bus)
            return bus

    async def _on_reconnect(self) -> None:
        await self._ensure_streams(self._services.link.bus)
        self._relay.wake()

    async def _ensure_streams(self, bus: Bus) -> None:
        await ensure_streams(bus, store_mib=self._services.settings.nats_store_mib)
