"""Tells the scheduler what is here and keeps the lease, by request and reply with its own deadline."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from services.gpu_agent import shim
from services.gpu_agent.inventory import Inventory
from services.gpu_agent.layout import HostFiles
from shared.bus.jetstream import Bus
from shared.bus.port import BusError
from shared.clock import Clock
from shared.events import subjects
from shared.events.calls import ControlEntry, Heartbeat, HeartbeatReply, RunReport
from shared.log import logger

DEADLINE_SECONDS = 3.0
DRIFT = 0.98
IDENTITY_PATIENCE = 90.0
"""Seconds: after a crash the scheduler may take the new agent for a second one until the old lease is over."""


@dataclass
class Standing:
    """What the last answer said."""

    drained: bool = False
    forgotten: bool = False
    ctl_epoch: str = ""
    restored: str = ""
    """Id of the last restore of the scheduler's database."""
    answered: bool = False
    refused_since: float | None = None
    """Boot time since when the scheduler says that another agent has this id."""
    leased_until: float = 0.0
    """Boot time at which the lease of the last answer is over."""
    held: set[tuple[str, int]] | None = None
    """(job, attempt) that are this host's under that lease; None where the scheduler does not say."""


@dataclass
class HeartbeatLoop:
    """One for an agent."""

    host: str
    instance: str
    files: HostFiles
    inventory: Inventory
    clock: Clock
    every: float
    reports: Callable[[bool], tuple[RunReport, ...]]
    """Takes whether ended attempts are wanted too."""
    changed: Callable[[], None]
    """Called after each answer."""
    restored: Callable[[str], None] = lambda _: None
    """Called with the id of the last restore, with each answer that names one."""
    standing: Standing = field(default_factory=Standing)
    _fully_reported: str = ""
    heard: float | None = None
    """Boot time at which the last answered heartbeat was sent, or the first one while none was answered."""
    began: float = 0.0
    """Boot time at which this instance began."""
    _soon: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """Note the time: a heartbeat of an earlier instance may arrive after the first one of this."""
        self.began = self.clock.boot()

    def beat_soon(self) -> None:
        """Ask the scheduler now instead of at the next turn; `changed` is called with or without an answer."""
        self._soon.set()

    async def run(self, bus: Bus) -> None:
        """Beat for ever."""
        while True:
            began = self.clock.boot()
            asked = self._soon.is_set()
            self._soon.clear()
            if not await self.beat(bus) and asked:
                self.changed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.1, self.every - (self.clock.boot() - began))):
                    await self._soon.wait()

    async def beat(self, bus: Bus) -> bool:
        """Send one heartbeat; tell whether it was answered."""
        inventory = await asyncio.to_thread(self.inventory.read)
        restored = self.standing.restored
        everything = restored != self._fully_reported
        sent = self.clock.boot()
        if self.heard is None:
            self.heard = sent
        message = Heartbeat(
            instance=self.instance,
            boot_id=shim.boot_id(),
            began=self.began,
            inventory=inventory,
            runs=self.reports(everything),
            restored=restored,
            unanswered_seconds=sent - self.heard,
        )
        try:
            reply = await bus.request(
                subjects.heartbeat(self.host), message, HeartbeatReply, timeout=DEADLINE_SECONDS
            )
        except BusError as error:
            if self.standing.answered:
                logger("heartbeat").warning("unanswered", error=type(error).__name__)
            self.standing.answered = False
            return False
        if not self.standing.answered:
            logger("heartbeat").info("answered", host=self.host)
        if reply.ok and everything:
            self._fully_reported = restored
        self.take(reply, sent)
        if self.standing.restored != self._fully_reported:
            self.beat_soon()
        return True

    def take(self, reply: HeartbeatReply, sent: float) -> None:
        """Keep what the scheduler answered to the heartbeat that was sent at boot time `sent`."""
        standing = self.standing
        standing.answered = True
        self.heard = sent
        if reply.error == "identity_in_use":
            standing.refused_since = standing.refused_since or sent
            logger("heartbeat").error("identity_in_use", host=self.host)
        elif reply.error == "forgotten":
            if not standing.forgotten:
                logger("heartbeat").error("forgotten", host=self.host)
            standing.forgotten = True
        else:
            standing.refused_since = None
            standing.forgotten = False
            standing.held = None if reply.held is None else {(h.job, h.attempt) for h in reply.held}
            standing.leased_until = sent + reply.lease_seconds * DRIFT
            self._write_lease(sent, reply.lease_seconds)
        standing.drained = reply.drained
        standing.restored = reply.restored
        if reply.restored:
            self.restored(reply.restored)
        standing.ctl_epoch = reply.ctl_epoch
        self.changed()

    @property
    def is_usurped(self) -> bool:
        """Tell whether another agent has had this host's id for so long that this one must leave."""
        since = self.standing.refused_since
        return since is not None and self.clock.boot() - since > IDENTITY_PATIENCE

    @property
    def accepts(self) -> bool:
        """Tell whether new work may start here."""
        standing = self.standing
        return not (standing.drained or standing.forgotten or standing.refused_since is not None)

    def may_start(self, entry: ControlEntry) -> bool:
        """Tell whether the scheduler cannot have given this attempt up already.

        With `stop_and_requeue` the lease must run and name the attempt: `ctl` may be older than the scheduler's books.
        """
        if entry.disconnect_policy != "stop_and_requeue":
            return True
        held = self.standing.held
        named = held is None or (entry.job, entry.attempt) in held
        return named and self.clock.boot() < self.standing.leased_until

    def _write_lease(self, sent: float, seconds: float) -> None:
        """For the shims, counted from when the request left. Not fsynced: after a power cut no shim is there to read it."""
        document = {
            "renewed": sent,
            "deadline": sent + seconds * DRIFT,
            "boot_id": shim.boot_id(),
        }
        temporary = self.files.lease.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(document))
            temporary.replace(self.files.lease)
        except OSError as error:
            logger("heartbeat").error("lease_not_written", error=str(error))
