"""Carries decisions out: events to JOBS in order, and only then desired states to `ctl`.

Everything here is a copy of what SQL holds and may be done twice. A new epoch of either store is filled again from SQL.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from services.scheduler import relay_rows, store
from services.scheduler.relay_rows import PendingDesired, PendingEvent
from shared.bus import Bus, BusError, ControlBucket, MessageTooLarge, PubAck
from shared.db import Database
from shared.events import decode, subjects
from shared.events.base import Envelope, EventBase
from shared.events.calls import ControlEntry
from shared.log import logger

BATCH = 512
SOURCE = "/trainyard/scheduler"
log = logger("scheduler.execute")


class Relay:
    """One per leadership; `run_once` is repeated by the loop until it finds nothing to do."""

    def __init__(
        self,
        bus: Bus,
        database: Database,
        hosts: Callable[[], Iterable[str]],
        crash: Callable[[str], None],
    ) -> None:
        """`hosts` names the hosts that get an epoch key; `crash` is called at named points (tests)."""
        self.bus = bus
        self.ctl: ControlBucket = bus.control()
        self.database = database
        self.ctl_epoch = ""
        """Epoch for which `ctl` holds every desired state; empty until then."""
        self._hosts = hosts
        self._crash = crash
        self._told: dict[str, str] = {}
        """Host → epoch in its epoch key."""

    async def run_once(self) -> None:
        """Publish all that is unpublished, then write all that is unwritten. Raises BusError to be tried again."""
        await self._publish_all()
        self._crash("after_publish")
        epoch = await self.ctl.epoch()
        if epoch != self.ctl_epoch:
            self.ctl_epoch = ""
            await self._remove_strangers()
        await self._write_all(epoch)
        self._crash("after_write")
        await self._tell_hosts(epoch)
        self.ctl_epoch = epoch

    async def check_epoch(self) -> None:
        """Publish everything again if JOBS was made anew. Raises BusError."""
        state = await self.bus.stream_state("JOBS")

        def compare(session: Any) -> int:
            known = store.position(session, "JOBS")
            if known.epoch == state.epoch:
                return 0
            store.save_position(session, store.Position("JOBS", state.epoch, 0))
            return relay_rows.publish_again(session, state.epoch)

        again = await self.database.write(compare)
        if again:
            log.warning("jobs_stream_made_anew", epoch=state.epoch, events=again)

    async def audit(self) -> None:
        """Compare `ctl` with SQL and mend what differs: a scheduler that lost the lead may have written late."""
        if not self.ctl_epoch:
            return
        there = await self.ctl.entries("")
        wanted = await self.database.read(relay_rows.all_desired)
        wrong = [
            (host, job)
            for (host, job), entry in wanted.items()
            if not _agrees(there.get(subjects.control_key(host, job)), entry, self.ctl_epoch)
        ]
        if wrong:
            log.warning("ctl_differs", keys=len(wrong))
            await self.database.write(lambda s: relay_rows.rewrite(s, wrong))
        await self._remove(there, wanted.keys())

    async def _publish_all(self) -> None:
        epoch = (await self.bus.stream_state("JOBS")).epoch
        after = 0
        while True:
            rows = await self.database.read(
                lambda s, after=after: relay_rows.unpublished(s, after, BATCH)  # type: ignore[misc]
            )
            if not rows:
                return
            for wave in _waves(rows):
                await self._publish(wave, epoch)
            after = rows[-1].id

    async def _publish(self, wave: list[PendingEvent], epoch: str) -> None:
        """Publish events of different jobs; the next event of a job waits until this one is stored."""
        items = [(row.subject, *_event(row), row.message_id) for row in wave]
        results = await self.bus.publish_many(items, timeout=10)
        stored = [row.id for row, r in zip(wave, results, strict=True) if _is_settled(row, r)]
        self._crash("before_mark_published")
        if stored:
            await self.database.write(lambda s: relay_rows.mark_published(s, stored, epoch))
        failed = next(
            (r for r in results if isinstance(r, BusError) and not isinstance(r, MessageTooLarge)),
            None,
        )
        if failed is not None:
            raise failed

    async def _write_all(self, epoch: str) -> None:
        while True:
            rows = await self.database.read(lambda s: relay_rows.unwritten(s, epoch, BATCH))
            if not rows:
                return
            for one in rows:
                await self._write(one, epoch)
            await self.database.write(
                lambda s, rows=rows: relay_rows.mark_written(s, rows, epoch)  # type: ignore[misc]
            )

    async def _write(self, one: PendingDesired, epoch: str) -> None:
        key = subjects.control_key(one.host, one.job)
        if one.entry is None:
            await self.ctl.delete(key)
            return
        entry = ControlEntry.model_validate_json(one.entry)
        await self.ctl.put(key, entry.model_copy(update={"epoch": epoch}))

    async def _tell_hosts(self, epoch: str) -> None:
        """Say that a host's desired states are complete: only now does an absent key mean stop."""
        for host in self._hosts():
            if self._told.get(host) != epoch:
                await self.ctl.put(subjects.control_epoch_key(host), {"epoch": epoch})
                self._told[host] = epoch

    async def _remove_strangers(self) -> None:
        self._told.clear()
        there = await self.ctl.entries("")
        wanted = await self.database.read(relay_rows.all_desired)
        await self._remove(there, wanted.keys())

    async def _remove(self, there: Iterable[str], wanted: Iterable[tuple[str, str]]) -> None:
        """Remove keys that SQL knows nothing about, and what forgotten hosts left behind."""
        known = {subjects.control_key(host, job) for host, job in wanted}
        known |= {subjects.control_epoch_key(host) for host in self._hosts()}
        for key in set(there) - known:
            log.warning("ctl_key_unknown", key=key)
            await self.ctl.delete(key)
            self._told.pop(key.partition(".")[0], None)


def _waves(rows: list[PendingEvent]) -> list[list[PendingEvent]]:
    """Split events into groups in which no job occurs twice, each job's events in order."""
    waves: list[list[PendingEvent]] = []
    depth: dict[str, int] = {}
    for row in rows:
        at = depth.get(row.job, 0)
        depth[row.job] = at + 1
        if at == len(waves):
            waves.append([])
        waves[at].append(row)
    return waves


def _is_settled(row: PendingEvent, result: PubAck | BusError) -> bool:
    """Tell whether an event needs no other try; one that the broker will never take must not hold up the rest."""
    if isinstance(result, MessageTooLarge):
        log.error("event_too_large", job=row.job, id=row.id, bytes=len(row.event))
        return True
    return not isinstance(result, BusError)


def _event(row: PendingEvent) -> tuple[EventBase, Envelope]:
    _, event = decode(None, row.event.encode())
    at = datetime.fromtimestamp(row.at, UTC)
    return event, Envelope(row.message_id, SOURCE, at, row.traceparent)


def _agrees(there: bytes | None, entry: str, epoch: str) -> bool:
    if there is None:
        return False
    try:
        found = json.loads(there)
    except ValueError:
        return False
    wanted = json.loads(entry)
    return bool(
        found.pop("epoch", None) == epoch and wanted.pop("epoch", "") == "" and found == wanted
    )


async def repeat(work: Callable[[], Any], wake: asyncio.Event, at_least_every: float) -> None:
    """Call `work` when woken and every so often; a bus that is away is tried again with a growing pause."""
    pause = 0.1
    while True:
        wake.clear()
        try:
            await work()
            pause = 0.1
            wait = at_least_every
        except BusError as error:
            log.warning("bus_not_ready", error=str(error)[:200])
            wait, pause = pause, min(pause * 2, 2.0)
        try:
            async with asyncio.timeout(wait):
                await wake.wait()
        except TimeoutError:
            continue
