"""Asks the api what it has stored; what it has not gets published again, and what is complete is let go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from services.gpu_agent.relay import Relay
from services.gpu_agent.spool import AttemptSpool
from shared.bus.jetstream import Bus
from shared.bus.port import BusError
from shared.clock import Clock
from shared.events import subjects
from shared.events.calls import AckQuery, AckReply, AttemptCursor
from shared.log import logger

ACK_SECONDS = 2.0
_MOST_CURSORS = 200


class Confirmations:
    """The other half of the relay."""

    def __init__(self, relay: Relay, clock: Clock, every: float = ACK_SECONDS) -> None:
        """Do no I/O."""
        self._relay = relay
        self._clock = clock
        self._every = every
        self._doubted: dict[tuple[str, int], AttemptSpool] = {}
        self._settled: Callable[[], None] | None = None

    def doubt(self, spools: Iterable[AttemptSpool], settled: Callable[[], None]) -> None:
        """The api was restored from a backup: ask about all of `spools` again, whatever was confirmed.

        `settled` is called once each of them has an answer.
        """
        self._doubted = {(s.job, s.attempt): s for s in spools}
        self._settled = settled

    async def run(self, bus: Bus) -> None:
        """Ask every two seconds while something is not confirmed, for ever."""
        while True:
            await asyncio.sleep(self._every)
            if self._settled is not None:
                await self._ask_again(bus)
            open_ = [s for s in self._relay.spools if _asks(s)]
            for start in range(0, len(open_), _MOST_CURSORS):
                await self._ask(bus, open_[start : start + _MOST_CURSORS])
            for spool in self._relay.spools:
                if spool.is_confirmed():
                    self._relay.retire(spool)

    async def _ask_again(self, bus: Bus) -> None:
        """Go through what is doubted; what the api cannot tell yet (an assignment is on its way) comes up again."""
        for key in list(self._doubted)[:_MOST_CURSORS]:
            self._doubted[key] = self._doubted.pop(key)  # to the end of the line
        await self._ask(bus, list(self._doubted.values())[-_MOST_CURSORS:])
        if not self._doubted and self._settled is not None:
            self._settled()
            self._settled = None

    async def _ask(self, bus: Bus, spools: list[AttemptSpool]) -> None:
        cursors = tuple(
            AttemptCursor(job=s.job, attempt=s.attempt, seq=s.published()) for s in spools
        )
        subject = subjects.ack(self._relay.host)
        try:
            reply = await bus.request(subject, AckQuery(attempts=cursors), AckReply, timeout=3)
        except BusError:
            self._pardon(spools)
            return
        self.apply(reply)
        self._resend_what_is_stuck(spools)

    def apply(self, reply: AckReply) -> None:
        """Take what the api has stored, and which attempts it refuses to store."""
        now = self._clock.boot()
        for cursor in reply.attempts:
            self._send_what_is_gone(cursor)
            spool = self._relay.get(cursor.job, cursor.attempt)
            for kind, seq in cursor.seq.items():
                if spool is not None and kind in spool.streams:
                    spool.streams[kind].confirm(seq, now)
        for cursor in reply.refused:
            self._doubted.pop((cursor.job, cursor.attempt), None)
            spool = self._relay.get(cursor.job, cursor.attempt)
            if spool is None:
                continue
            if not spool.refused:
                logger("relay").warning("attempt_refused", job=spool.job, attempt=spool.attempt)
            spool.refused = True
            facts = spool.streams["run"]
            facts.confirm(facts.published.seq, now)

    def _send_what_is_gone(self, cursor: AttemptCursor) -> None:
        """Of a doubted attempt, publish again what lies behind the numbers that the api names."""
        spool = self._doubted.pop((cursor.job, cursor.attempt), None)
        if spool is None:
            return
        gone = [k for k, s in spool.streams.items() if k in cursor.seq and s.go_back(cursor.seq[k])]
        if gone:
            logger("relay").warning("sent_again", job=spool.job, attempt=spool.attempt, kinds=gone)
            spool.done = False
            self._relay.add(spool)
            self._relay.wake()

    def _pardon(self, spools: list[AttemptSpool]) -> None:
        """The api is away: its silence is no sign of a loss."""
        now = self._clock.boot()
        for spool in spools:
            for stream in spool.streams.values():
                stream.waits_since = now

    def _resend_what_is_stuck(self, spools: list[AttemptSpool]) -> None:
        now = self._clock.boot()
        resent = False
        for spool in spools:
            for kind, stream in spool.streams.items():
                if (not spool.refused or kind == "run") and stream.resend_if_stuck(now):
                    resent = True
                    logger("relay").warning(
                        "resending", job=spool.job, kind=kind, after_seq=stream.confirmed_seq
                    )
        if resent:
            self._relay.wake()


def _asks(spool: AttemptSpool) -> bool:
    return any(s.has_unconfirmed for s in spool.streams.values())
