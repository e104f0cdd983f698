"""Publishes what the spools hold, in order per kind.

One lane a stream, so that a full or slow stream holds back no other. Nothing here can lose data: what is not confirmed
is published again from the file.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from services.gpu_agent.core.batching import Limits, OutBatch
from services.gpu_agent.core.holding import Answers
from services.gpu_agent.core.spool_cap import HOST_CAP_BYTES, to_drop
from services.gpu_agent.facts import parse_fact
from services.gpu_agent.kind_stream import KindStream
from services.gpu_agent.spool import AttemptSpool
from shared.bus.jetstream import Bus, Item
from shared.bus.port import (
    BusError,
    BusUnavailable,
    MessageTooLarge,
    PermissionDenied,
    PubAck,
    PublishTimeout,
    StreamFull,
    StreamMissing,
)
from shared.clock import Clock
from shared.events import subjects
from shared.events.base import Envelope, EventBase
from shared.events.run import BatchBase, LogBatch, MetricsBatch, SampleBatch, SystemBatch
from shared.log import logger

LANES: dict[str, tuple[str, tuple[str, ...]]] = {
    "RUNS": ("run", ("run",)),
    "METRICS": ("met", ("met", "sys")),
    "LOGS": ("log", ("log",)),
    "SAMPLES": ("smp", ("smp",)),
}
"""Stream → prefix of its subjects and the kinds on them."""
_BATCH: dict[str, type[BatchBase]] = {
    "met": MetricsBatch,
    "sys": SystemBatch,
    "log": LogBatch,
    "smp": SampleBatch,
}
ACTIVE_SECONDS = 0.02
IDLE_SECONDS = 0.25
WEIGH_SECONDS = 2.0
EPOCH_SECONDS = 30.0
EPOCH_RETRY_SECONDS = 1.0
ASK_SECONDS = 2.0
_MOST_MESSAGES = 64
_NO_ANSWER = (PublishTimeout, BusUnavailable)
_ONE = Limits(1, 1, 0.0)


class Relay:
    """Owns the spools of all attempts that are not confirmed to their end."""

    def __init__(
        self,
        host: str,
        clock: Clock,
        limits: Limits | None = None,
        *,
        cap: int = HOST_CAP_BYTES,
    ) -> None:
        """Do no I/O. `cap`: bytes that all spools together may hold."""
        self._cap = cap
        self._weigh_at = 0.0
        self.host = host
        self._clock = clock
        self._limits = limits or Limits()
        self._spools: dict[tuple[str, int], AttemptSpool] = {}
        self._wake = {lane: asyncio.Event() for lane in LANES}
        self._look = asyncio.Event()
        now = clock.boot()
        self._answers = Answers(now, now)
        self._epochs: dict[str, str] = {}
        self._check_epochs = asyncio.Event()
        self.on_facts_lost: Callable[[], None] = lambda: None
        """Called when the stream of run facts was made anew."""

    # spools

    def add(self, spool: AttemptSpool) -> None:
        """Relay an attempt until all of it is confirmed."""
        self._spools[spool.job, spool.attempt] = spool
        self._look.set()
        for lane, epoch in self._epochs.items():
            self._compare_epoch(spool, lane, epoch)

    @property
    def spools(self) -> list[AttemptSpool]:
        """Return the attempts that are not done."""
        return list(self._spools.values())

    def retire(self, spool: AttemptSpool) -> None:
        """All of an attempt is confirmed: look at it no more, once that is on disk."""
        spool.done = True
        if not spool.save(self._clock.boot(), force=True):
            spool.done = False
            return
        self._spools.pop((spool.job, spool.attempt), None)

    def get(self, job: str, attempt: int) -> AttemptSpool | None:
        """Return the spool of an attempt that is not done."""
        return self._spools.get((job, attempt))

    def remove(self, job: str) -> None:
        """Forget a job whose files are gone."""
        for key in [k for k in self._spools if k[0] == job]:
            del self._spools[key]

    def resend_facts(self, spool: AttemptSpool) -> None:
        """Publish all run facts of an attempt again: someone who needs them did not get them."""
        spool.done = False
        spool.streams["run"].rewind(whole=True)
        self.add(spool)

    @property
    def has_queue(self) -> bool:
        """Tell whether something is read and not published."""
        return any(s.has_queue for spool in self._spools.values() for s in spool.streams.values())

    # loops

    async def run_reader(self) -> None:
        """Tail the files, for ever: often while something runs, and at once when the agent itself has written."""
        while True:
            self._look.clear()
            if self.read_once():
                await asyncio.sleep(0)
                continue
            alive = any(not s.facts.is_closed for s in self._spools.values())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ACTIVE_SECONDS if alive else IDLE_SECONDS):
                    await self._look.wait()

    def read_once(self) -> bool:
        """Take in what was written; tell whether there may be more at once."""
        now = self._clock.boot()
        moved = False
        for spool in list(self._spools.values()):
            try:
                if spool.poll(now):
                    moved = True
                spool.give_up_log()
                spool.save(now)
            except OSError as error:
                logger("relay").warning("spool_unreadable", job=spool.job, error=str(error))
        if now >= self._weigh_at:
            self._weigh_at = now + WEIGH_SECONDS
            self._keep_to_cap()
        if moved:
            self.wake()
        return moved

    def _keep_to_cap(self) -> None:
        """Let logs give way while all spools together hold more than this host may keep."""
        held = [(key, spool.held()) for key, spool in self._spools.items()]
        for key, size in to_drop(held, self._cap):
            try:
                self._spools[key].drop_log(size)
            except OSError as error:
                logger("relay").warning("log_not_dropped", job=key[0], error=str(error))

    def wake(self) -> None:
        """Let the reader and every lane look at once."""
        self._look.set()
        for event in self._wake.values():
            event.set()

    def check_epochs_soon(self) -> None:
        """Ask the streams whether they are still the same ones (after a reconnect)."""
        self._check_epochs.set()

    async def run_lane(self, lane: str, bus: Bus) -> None:
        """Publish what belongs to one stream, for ever."""
        wake = self._wake[lane]
        while True:
            sent = await self._publish_once(lane, bus)
            if not sent:
                if lane == "RUNS":
                    await self._ask_while_held(bus)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await wake.wait()
            wake.clear()

    async def _ask_while_held(self, bus: Bus) -> None:
        """While a checkpoint waits and nothing is heard, find out whether the broker answers: only then its wait has an end."""
        if not any(spool.hold is not None for spool in self._spools.values()):
            return
        if self._clock.boot() - self._answers.last < ASK_SECONDS:
            return
        with contextlib.suppress(BusError):
            with contextlib.suppress(StreamMissing, PermissionDenied):  # these are answers too
                await bus.stream_state("RUNS", timeout=ASK_SECONDS)
            self._heard()

    def _heard(self) -> None:
        self._answers = self._answers.heard(self._clock.boot())

    def _pause(self) -> float:
        return ACTIVE_SECONDS if self.has_queue else IDLE_SECONDS

    async def _publish_once(self, lane: str, bus: Bus) -> bool:
        plan = self._plan(lane)
        if not plan:
            return False
        items = [self._message(spool, stream, b) for spool, stream, bs in plan for b in bs]
        results = await bus.publish_many(items, timeout=10)
        start = 0
        for spool, stream, batches in plan:
            part = results[start : start + len(batches)]
            start += len(batches)
            self._settle(spool, stream, part)
        return True

    def _plan(self, lane: str) -> list[tuple[AttemptSpool, KindStream, list[OutBatch]]]:
        now = self._clock.boot()
        plan: list[tuple[AttemptSpool, KindStream, list[OutBatch]]] = []
        room = _MOST_MESSAGES
        keys = list(self._spools)
        for key in keys:
            spool = self._spools[key]
            for kind in LANES[lane][1]:
                if room <= 0:
                    break
                stream = spool.streams[kind]
                if kind == "run":
                    batches = stream.take(now, _ONE, spool.leaving(self._answers, now))
                else:
                    batches = [] if spool.refused else stream.take(now, self._limits)
                if batches:
                    plan.append((spool, stream, batches))
                    room -= len(batches)
        if plan and len(keys) > 1:  # the one served first goes to the end of the line
            first = plan[0][0]
            self._spools[first.job, first.attempt] = self._spools.pop((first.job, first.attempt))
        return plan

    def _message(self, spool: AttemptSpool, stream: KindStream, batch: OutBatch) -> Item:
        prefix = next(p for p, kinds in LANES.values() if stream.kind in kinds)
        subject = str(subjects.RunSubject(prefix, self.host, spool.job, spool.attempt))
        event: EventBase
        if stream.kind == "run":
            event = parse_fact(batch.items[0])
        else:
            event = _BATCH[stream.kind](first_seq=batch.first_seq, items=batch.items)
        last = batch.first_seq + len(batch.items) - 1
        msg_id = f"{stream.kind}.{batch.first_seq}-{last}.{stream.round}"
        envelope = Envelope(
            id=f"{spool.job}.{spool.attempt}.{msg_id}",
            source=f"/trainyard/agent/{self.host}",
            time=self._clock.now(),
        )
        return subject, event, envelope, msg_id

    def _settle(
        self, spool: AttemptSpool, stream: KindStream, results: Sequence[PubAck | BusError]
    ) -> None:
        now = self._clock.boot()
        error = next((r for r in results if isinstance(r, BusError)), None)
        if any(not isinstance(r, _NO_ANSWER) for r in results):
            self._heard()
        stream.settle([isinstance(r, PubAck) for r in results], now)
        if spool.hold is not None and stream.kind == "met":
            self._wake["RUNS"].set()
        if error is None:
            if stream.failures:
                logger("relay").info("publishing_again", job=spool.job, kind=stream.kind)
            stream.failures = 0
            return
        if isinstance(error, MessageTooLarge):
            stream.shrink_first()
            return
        slow = isinstance(error, StreamFull | PermissionDenied)
        stream.retry_at = now + min(
            30.0 if slow else 5.0, (1.0 if slow else 0.1) * 2**stream.failures
        )
        stream.failures += 1
        if stream.failures in (1, 10, 100):
            logger("relay").warning(
                "publish_failed",
                job=spool.job,
                kind=stream.kind,
                error=f"{type(error).__name__}: {error}",
            )

    # epochs

    async def run_epochs(self, bus: Bus) -> None:
        """Notice that a stream was made anew, for ever: what is not confirmed is then published again."""
        while True:
            pause = EPOCH_SECONDS
            for name in LANES:
                try:
                    changed = self.note_epoch(name, (await bus.stream_state(name)).epoch)
                    if changed and name == "RUNS":
                        self.on_facts_lost()
                except BusError:
                    pause = EPOCH_RETRY_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._check_epochs.wait()
            self._check_epochs.clear()

    def note_epoch(self, lane: str, epoch: str) -> bool:
        """Take the present epoch of a stream; tell whether it changed since the last look of this agent."""
        self._heard()
        changed = self._epochs.get(lane, epoch) != epoch
        self._epochs[lane] = epoch
        for spool in self._spools.values():
            self._compare_epoch(spool, lane, epoch)
        if changed:
            self.wake()
        return changed

    @staticmethod
    def _compare_epoch(spool: AttemptSpool, lane: str, epoch: str) -> None:
        for kind in LANES[lane][1]:
            stream = spool.streams[kind]
            if stream.epoch not in (None, epoch):
                logger("relay").warning("stream_made_anew", stream=lane, job=spool.job, kind=kind)
                stream.rewind(whole=kind == "run")
            stream.epoch = epoch

    def save(self) -> None:
        """Write how far every spool has come."""
        for spool in self._spools.values():
            spool.save(self._clock.boot(), force=True)

    def snapshot(self) -> dict[str, Any]:
        """Return figures for the log and tests: attempts that are open, and bytes that wait."""
        waiting = sum(
            s.backlog() for spool in self._spools.values() for s in spool.streams.values()
        )
        return {"attempts": len(self._spools), "bytes_waiting": waiting}
