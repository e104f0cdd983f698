"""Asks the api what it has stored; what it has not gets published again, and what is complete is let go."""

from __future__ import annotations

import asyncio

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

    async def run(self, bus: Bus) -> None:
        """Ask every two seconds while something is not confirmed, for ever."""
        while True:
            await asyncio.sleep(self._every)
            open_ = [s for s in self._relay.spools if _asks(s)]
            for start in range(0, len(open_), _MOST_CURSORS):
                await self._ask(bus, open_[start : start + _MOST_CURSORS])
            for spool in self._relay.spools:
                if spool.is_confirmed():
                    self._relay.retire(spool)

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
            spool = self._relay.get(cursor.job, cursor.attempt)
            for kind, seq in cursor.seq.items():
                if spool is not None and kind in spool.streams:
                    spool.streams[kind].confirm(seq, now)
        for cursor in reply.refused:
            spool = self._relay.get(cursor.job, cursor.attempt)
            if spool is None:
                continue
            if not spool.refused:
                logger("relay").warning("attempt_refused", job=spool.job, attempt=spool.attempt)
            spool.refused = True
            facts = spool.streams["run"]
            facts.confirm(facts.published.seq, now)

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
