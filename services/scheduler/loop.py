"""The shell around the core: reads requests and facts, answers heartbeats, lets time pass, places, and relays.

Only the leader does any of it. Killed at any point it goes on from SQL: what was committed is relayed, what was not is
read again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from services.scheduler import leader, relay_rows, restored, store
from services.scheduler.core import leases
from services.scheduler.core.inputs import Beat, Input, Place, RequestArrived, Tick
from services.scheduler.core.state import Limits, Moment
from services.scheduler.desk import ASSIGN_AT_ONCE, Desk
from services.scheduler.execute import Relay, repeat
from services.scheduler.feed import HostFeed
from services.scheduler.gate import Gate
from services.scheduler.intake import fact_of, request_of
from services.scheduler.leader import Leadership, LeadershipLost
from services.scheduler.purging import purge_applied
from services.scheduler.store import Position
from shared.bus import Bus, BusError, BusMessage, StreamReset, ensure_streams
from shared.bus.streams import DEFAULT_STORE_MIB
from shared.clock import Clock
from shared.db import Database, DatabaseBusy, DatabaseFull
from shared.events.base import EventBase
from shared.events.calls import Heartbeat
from shared.log import logger

READ_BATCH = 128
"""Messages applied in one transaction: one fsync serves them all."""
TICK_SECONDS = 1.0
SEEN_SECONDS = 60.0
EPOCH_SECONDS = 10.0
AUDIT_SECONDS = 30.0
PRUNE_SECONDS = 3600.0
PURGE_SECONDS = 60.0
log = logger("scheduler.loop")


def no_crash(_: str) -> None:
    """Go on: the crash points are for tests."""


class Loop:
    """The scheduler of one process."""

    def __init__(
        self,
        bus: Bus,
        database: Database,
        clock: Clock,
        limits: Limits | None = None,
        crash: Callable[[str], None] = no_crash,
        store_mib: int = DEFAULT_STORE_MIB,
    ) -> None:
        """Do no I/O. `store_mib`: disk that the broker has for all streams together."""
        self.bus = bus
        self.database = database
        self.clock = clock
        self.limits = limits or Limits()
        self.desk: Desk | None = None
        """There while this process leads."""
        self.holder = leader.this_process()
        self._crash = crash
        self._store_mib = store_mib
        self._stopping = asyncio.Event()
        self._epoch_due = 0.0
        self._gate = Gate("", 0.0, clock)

    def stop(self) -> None:
        """End `run` after what is being done."""
        self._stopping.set()

    async def run(self) -> None:
        """Lead whenever nobody else does, until `stop`. Raises what it cannot live with: the process ends then."""
        self.bus.on_reconnect(self._on_reconnect)
        await self._make_streams()
        while not self._stopping.is_set():
            lead = await self._acquire()
            if lead is None:
                await self._pause(leader.POLL_SECONDS)
                continue
            log.info("leading", epoch=lead.epoch)
            try:
                await self._lead(lead)
            except* LeadershipLost:
                log.warning("lead_lost", epoch=lead.epoch)
            finally:
                self.desk = None
            with contextlib.suppress(DatabaseBusy, DatabaseFull):
                await self.database.write(lambda s, lead=lead: leader.release(s, lead))  # type: ignore[misc]

    async def _make_streams(self) -> None:
        while not self._stopping.is_set():
            try:
                await ensure_streams(self.bus, self._store_mib)
            except BusError as error:
                log.warning("streams_not_ready", error=str(error)[:200])
                await self._pause(0.5)
            else:
                return

    async def _acquire(self) -> Leadership | None:
        local = self.database.url.startswith("sqlite")
        try:
            return await self.database.write(
                lambda s: leader.acquire(s, self.holder, leader.unix(), local)
            )
        except (DatabaseBusy, DatabaseFull) as error:
            log.warning("database_not_ready", error=str(error)[:200])
            return None

    async def _lead(self, lead: Leadership) -> None:
        if not await self._heal(lead):
            return
        desk = await Desk.open(self.database, self.clock, lead, self.limits, self._crash)
        self._gate = gate = await Gate.open(self.database, self.clock)
        desk.is_open = lambda: gate.is_open(_known_hosts(desk))
        self.desk = desk
        relay = Relay(self.bus, self.database, lambda: _known_hosts(desk), self._crash)
        self._epoch_due = 0.0
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._renew(lead), name="renew"),
                group.create_task(self._read(desk, "REQUESTS"), name="requests"),
                group.create_task(self._read(desk, "RUNS"), name="runs"),
                group.create_task(self._place(desk), name="place"),
                group.create_task(self._tick(desk), name="tick"),
                group.create_task(self._relay(desk, relay), name="relay"),
                group.create_task(self._serve(desk, relay, lead), name="heartbeats"),
                group.create_task(self._tell(desk), name="feed"),
                group.create_task(self._purge(), name="purge"),
            ]
            group.create_task(self._end_on_stop(tasks), name="stop")

    async def _heal(self, lead: Leadership) -> bool:
        """Catch up after a restore; tell whether that is done (else it was asked to stop)."""
        while not self._stopping.is_set():
            now = Moment(self.clock.now(), self.clock.boot())
            try:
                await restored.heal(self.bus, self.database, lead, now, self.limits)
            except (BusError, DatabaseBusy, DatabaseFull) as error:
                log.warning("healing_paused", error=str(error)[:200])
                await self._pause(0.5)
            else:
                return True
        return False

    async def _end_on_stop(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        await self._stopping.wait()
        for task in tasks:
            task.cancel()

    async def _on_reconnect(self) -> None:
        """A broker that came back may have lost its store."""
        await ensure_streams(self.bus, self._store_mib)
        self._epoch_due = 0.0
        if self.desk is not None:
            self.desk.decided.set()

    async def _renew(self, lead: Leadership) -> None:
        while True:
            with contextlib.suppress(DatabaseBusy, DatabaseFull):
                await self.database.write(lambda s: leader.fence(s, lead, leader.unix()))
            await asyncio.sleep(leader.RENEW_SECONDS)

    async def _read(self, desk: Desk, stream: str) -> None:
        """Apply a stream from its stored position on, for ever."""
        while True:
            at = await self.database.read(lambda s: store.position(s, stream))
            try:
                await self._read_from(desk, at)
            except StreamReset as reset:
                log.warning("stream_made_anew", stream=stream, epoch=reset.epoch)
                await desk.commit([], Position(stream, reset.epoch, 0))
            except (BusError, DatabaseBusy, DatabaseFull) as error:
                log.warning("reading_paused", stream=stream, error=str(error)[:200])
                await asyncio.sleep(0.5)

    async def _read_from(self, desk: Desk, at: Position) -> None:
        reader = await self.bus.reader(at.stream, after=at.last_seq, epoch=at.epoch or None)
        try:
            while True:
                messages = await reader.fetch(READ_BATCH, 1.0)
                if messages:
                    inputs, traces = _inputs(messages)
                    last = messages[-1]
                    await desk.commit(inputs, Position(at.stream, last.epoch, last.seq), traces)
        finally:
            await reader.close()

    async def _place(self, desk: Desk) -> None:
        """Give out free GPUs after heartbeats and as time goes by, and renew why jobs wait; see `Desk.commit`."""
        told = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await desk.stirred.wait()
            desk.stirred.clear()
            if not desk.state.queue.standing or not desk.is_open():
                continue
            refresh = 64 if self.clock.boot() - told >= TICK_SECONDS else 0
            if refresh:
                told = self.clock.boot()
            try:
                await desk.commit([Place(ASSIGN_AT_ONCE, refresh)])
            except (DatabaseBusy, DatabaseFull) as error:
                log.warning("placing_paused", error=str(error)[:200])
                await asyncio.sleep(0.5)

    async def _tick(self, desk: Desk) -> None:
        seen_at = pruned_at = self.clock.boot()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self.clock.boot()
            try:
                await desk.commit([Tick()])
                if now - seen_at >= SEEN_SECONDS:
                    seen_at = now
                    await desk.save_seen()
                    await desk.evict()
                if now - pruned_at >= PRUNE_SECONDS:
                    pruned_at = now
                    await self.database.write(lambda s: relay_rows.prune(s, leader.unix()))
            except (DatabaseBusy, DatabaseFull) as error:
                log.warning("tick_paused", error=str(error)[:200])

    async def _relay(self, desk: Desk, relay: Relay) -> None:
        audited = self.clock.boot()

        async def work() -> None:
            nonlocal audited
            now = self.clock.boot()
            try:
                if now >= self._epoch_due:
                    await relay.check_epoch()
                    self._epoch_due = now + EPOCH_SECONDS
                await relay.run_once()
                if now - audited >= AUDIT_SECONDS:
                    audited = now
                    await relay.audit()
            except (DatabaseBusy, DatabaseFull) as error:
                log.warning("relay_paused", error=str(error)[:200])

        await repeat(work, desk.decided, TICK_SECONDS)

    async def _serve(self, desk: Desk, relay: Relay, lead: Leadership) -> None:
        """Answer heartbeats; one that could not be stored gets no answer, so its lease is not renewed.

        Nor does one that reached a leader which was frozen and deposed: its successor counts the host as silent.
        """

        async def answer(subject: str, data: bytes) -> EventBase:
            beat = Beat(subject.partition(".")[2], Heartbeat.model_validate_json(data))
            await self.database.read(lambda s: leader.check(s, lead))
            gate = self._gate
            reply = leases.reply(
                desk.state, beat, desk.now(), relay.ctl_epoch, lead.epoch, gate.restored
            )
            await desk.commit([beat])
            if reply.ok and gate.note(beat.host, beat.heartbeat.restored):
                desk.stirred.set()
            held = leases.held(desk.state, beat.host, desk.now()) if reply.ok else ()
            return reply.model_copy(update={"held": held})

        served = await self.bus.serve("hb.*", answer)
        try:
            await asyncio.Event().wait()
        finally:
            await served.close()

    async def _tell(self, desk: Desk) -> None:
        feed = HostFeed(self.bus)
        while True:
            with contextlib.suppress(BusError):
                while await feed.tell(desk.state, desk.now()):
                    pass
            await asyncio.sleep(TICK_SECONDS / 2)

    async def _purge(self) -> None:
        while True:
            await asyncio.sleep(PURGE_SECONDS)
            try:
                await purge_applied(self.bus, self.database)
            except (BusError, DatabaseBusy, DatabaseFull) as error:
                log.warning("purge_paused", error=str(error)[:200])

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


def _inputs(messages: Sequence[BusMessage]) -> tuple[list[Input], dict[str, str]]:
    inputs: list[Input] = []
    traces: dict[str, str] = {}
    for message in messages:
        if message.stream == "RUNS":
            one, trace = fact_of(message), None
        else:
            one, trace = request_of(message)
        if one is not None:
            inputs.append(one)
        if trace is not None and isinstance(one, RequestArrived):
            traces[one.request.job] = trace
    return inputs, traces


def _known_hosts(desk: Desk) -> list[str]:
    return [host.id for host in desk.state.hosts.values() if not host.forgotten]


__all__ = ["Loop", "no_crash"]
