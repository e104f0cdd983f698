"""Follows the desired states of this host in `ctl`: by watch, at each reconnect, and by a whole read every 30 s."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from shared.bus.jetstream import Bus
from shared.bus.port import BusError
from shared.events.calls import ControlEntry
from shared.events.subjects import control_epoch_key
from shared.log import logger

READ_SECONDS = 30.0
RETRY_SECONDS = 2.0


class ControlFollower:
    """Keeps `entries` and `epoch`; calls `changed` after each change."""

    def __init__(self, host: str, changed: Callable[[], None]) -> None:
        """Do no I/O."""
        self._host = host
        self._changed = changed
        self._again = asyncio.Event()
        self.entries: dict[str, ControlEntry] = {}
        self.epoch: str | None = None
        """For which all of `entries` were written; None while that is not known."""

    async def run(self, bus: Bus) -> None:
        """Follow for ever."""
        control = bus.control()
        watch = None
        try:
            while True:
                try:
                    if watch is None:
                        watch = await control.watch(f"{self._host}.", self._on_key)
                    self.replace(await control.entries(f"{self._host}."))
                    pause = READ_SECONDS
                except BusError as error:
                    logger("control").info("not_read", error=f"{type(error).__name__}: {error}")
                    self.epoch = None  # what is absent may only be unread
                    pause = RETRY_SECONDS
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._again.wait()
                self._again.clear()
        finally:
            if watch is not None:
                await watch.close()

    def read_soon(self) -> None:
        """Read everything again now."""
        self._again.set()

    async def _on_key(self, key: str, value: bytes | None) -> None:
        if key == control_epoch_key(self._host):
            # the epoch counts only together with a whole read
            self.read_soon()
            return
        job = key.removeprefix(f"{self._host}.")
        if value is None:
            self.entries.pop(job, None)
        else:
            entry = _parse(key, value)
            if entry is not None:
                self.entries[job] = entry
        self._changed()

    def replace(self, found: Mapping[str, bytes]) -> None:
        """Take a whole read."""
        entries: dict[str, ControlEntry] = {}
        epoch = None
        for key, value in found.items():
            if key == control_epoch_key(self._host):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    epoch = str(json.loads(value)["epoch"])
                continue
            entry = _parse(key, value)
            if entry is not None:
                entries[entry.job] = entry
        if any(
            _parse(k, v) is None for k, v in found.items() if k != control_epoch_key(self._host)
        ):
            epoch = None  # an entry that cannot be read is not an absent one
        self.entries, self.epoch = entries, epoch
        self._changed()


def _parse(key: str, value: bytes) -> ControlEntry | None:
    try:
        entry = ControlEntry.model_validate_json(value)
    except ValidationError as error:
        logger("control").error("entry_unreadable", key=key, error=str(error)[:300])
        return None
    return entry if key.endswith(f".{entry.job}") else None
