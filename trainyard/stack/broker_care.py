"""Looks after the embedded broker while the stack runs: asks how its streams are, and starts it again when that helps."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from shared.bus.embedded import health
from shared.disk.levels import Level
from shared.disk.volumes import VolumeWatch
from shared.log import logger
from trainyard.stack.core.broker_watch import EVERY_SECONDS, Look, Watch, decide
from trainyard.stack.process import Service

log = logger("up")
_STORE = "broker"


async def watch_broker(broker: Service, home: Path) -> None:
    """Look every EVERY_SECONDS, for ever."""
    volumes = VolumeWatch({_STORE: home / "nats" / "store"})
    watch, told = Watch(), ""
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        found = await health(home)
        standing = next(iter(volumes.look()), None)
        level = standing.level if standing else Level.OK
        trouble = found.trouble if found.answered else None
        if trouble is not None and trouble != told:
            log.error("broker_troubled", trouble=trouble, disk=level.value)
        told = trouble or ""
        verdict = decide(watch, Look(time.monotonic(), found.answered, trouble, level))
        watch = verdict.watch
        if verdict.restart:
            log.warning("broker_restarts", trouble=trouble)
            await broker.end_process()
