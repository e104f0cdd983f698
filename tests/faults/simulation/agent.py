"""One agent: heartbeats, desired states, relay and confirmations by the product's own code, on virtual time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

from services.gpu_agent.confirmations import Confirmations, _asks
from services.gpu_agent.control import READ_SECONDS, ControlFollower
from services.gpu_agent.heartbeat import DEADLINE_SECONDS, HeartbeatLoop
from services.gpu_agent.relay import Relay
from shared.bus.port import BusError
from shared.events.calls import (
    AckQuery,
    AckReply,
    AttemptCursor,
    ControlEntry,
    Heartbeat,
    HeartbeatReply,
)
from shared.jobs.resources import GpuInfo, HostInventory
from tests.faults.simulation.api import ApiNode
from tests.faults.simulation.broker import Broker
from tests.faults.simulation.engine import Crash, Engine, Process, Thread, clock_of
from tests.faults.simulation.host import SimHost
from tests.faults.simulation.runner import SimRunner
from tests.faults.simulation.scheduler import SchedulerNode

LANES_HERE = ("RUNS", "METRICS")
BEAT_SECONDS = 3.25


class _Beats(HeartbeatLoop):
    """Writes the lease into the host's memory."""

    host_files: SimHost
    soon: Callable[[], None]

    def beat_soon(self) -> None:
        self.soon()

    def _write_lease(self, sent: float, seconds: float) -> None:
        machine = self.host_files.machine
        self.host_files.lease = {
            "renewed": sent,
            "deadline": sent + seconds * 0.98,
            "boot_id": machine.boot_id,
        }


class _Control(ControlFollower):
    """Reads again through the simulation's own queue."""

    soon: Callable[[], None]

    def read_soon(self) -> None:
        self.soon()


class SimAgent:
    """The agent process of one host; a new one is made at each start."""

    def __init__(
        self,
        host: SimHost,
        broker: Broker,
        schedulers: Sequence[SchedulerNode],
        api: ApiNode,
        number: int,
    ) -> None:
        """Adopt what runs and connect."""
        self.host = host
        self.engine: Engine = host.engine
        self.broker = broker
        self.schedulers = schedulers
        self.api = api
        self.process = Process(host.machine, f"agent-{host.id}")
        self.crash_chance = 0.0
        self.on_answer: Callable[[], float] = lambda: 0.0
        """Called when a heartbeat is answered; returns for how many seconds more the answer is on its way."""
        self.clock = clock_of(self.engine, host.machine)
        self._pending: set[str] = set()
        self._watch_at = 0.0
        self._known: tuple[tuple[str | None, ...], HostInventory] | None = None
        self.relay = Relay(host.id, self.clock)
        self.confirmations = Confirmations(self.relay, self.clock)
        self.runner = SimRunner(self, self.relay)
        self.relay.on_facts_lost = self.runner.send_all_again
        self.control = _Control(host.id, self._commanded)
        self.control.soon = lambda: self._soon("control", 0.01, self._read_control)
        self.beats = _Beats(
            host=host.id,
            instance=f"{host.id}-i{number}",
            files=None,  # type: ignore[arg-type]
            inventory=None,  # type: ignore[arg-type]
            clock=self.clock,
            every=BEAT_SECONDS,
            reports=self.runner.reports,
            changed=self._changed,
        )
        self.beats.host_files = host
        self.beats.soon = lambda: self._soon("beat", 0.01, self._beat_now)
        broker.watchers[host.id] = self._on_watch
        broker.reconnected[host.id] = self._reconnected
        self.note("started")
        self.runner.adopt()
        for thread in (
            self.runner.rounds(), self._beat(), self._follow(), self._relay_rounds(),
            self._confirm(), self._epochs(),
        ):  # fmt: skip
            self.spawn(thread)

    # what the parts use

    def note(self, what: str, *detail: object) -> None:
        """Add a line to the trace."""
        self.engine.note(self.process.name, what, *detail)

    def spawn(self, thread: Thread, done: Callable[[], None] | None = None) -> None:
        """Run a thread of this process."""
        self.engine.spawn(self.process, thread, done)

    def after(self, seconds: float, work: Callable[[], None]) -> None:
        """Do `work` in `seconds` of this host's clock."""
        self.engine.after(seconds, work, self.process)

    def kill(self) -> None:
        """Die; what runs goes on."""
        if self.process.alive:
            self.note("killed")
            self.process.alive = False

    def crash(self, point: str) -> None:
        """Perhaps die right here."""
        if self.crash_chance and self.engine.rng.random() < self.crash_chance:
            self.note("crash", point)
            self.engine.saw(f"agent crashed {point}")
            self.process.alive = False
            raise Crash(point)

    def _soon(self, name: str, seconds: float, work: Callable[[], None]) -> None:
        if name in self._pending:
            return
        self._pending.add(name)

        def go() -> None:
            self._pending.discard(name)
            work()

        self.after(seconds, go)

    def may_start(self, entry: ControlEntry) -> bool:
        """See services.gpu_agent.heartbeat.HeartbeatLoop."""
        return self.beats.may_start(entry)

    def _commanded(self) -> None:
        """See services.gpu_agent.daemon.Agent."""
        drained = self.beats.standing.drained
        wanted = [e for e in self.control.entries.values() if e.desired == "run"]
        if drained or not all(map(self.beats.may_start, wanted)):
            self.beats.beat_soon()
        if not drained:
            self._changed()

    def _changed(self) -> None:
        standing = self.beats.standing
        self.runner.entries = self.control.entries
        self.runner.complete = bool(
            standing.answered
            and standing.refused_since is None
            and self.control.epoch
            and self.control.epoch == standing.ctl_epoch
        )
        self.runner.accepting = self.beats.accepts
        self.runner.wake()

    # heartbeats

    def _beat(self) -> Thread:
        while True:
            yield from self._beat_once()
            yield BEAT_SECONDS - DEADLINE_SECONDS

    def _beat_now(self) -> None:
        self.spawn(self._beat_once(), self._changed)

    def _beat_once(self) -> Thread:
        sent = self.clock.boot()
        if self.beats.heard is None:
            self.beats.heard = sent
        message = Heartbeat(
            instance=self.beats.instance,
            boot_id=self.host.machine.boot_id,
            began=self.beats.began,
            inventory=self._inventory(),
            runs=self.runner.reports(),
            unanswered_seconds=sent - self.beats.heard,
        )
        answered: list[bool] = []
        self._ask_scheduler(message, sent, answered)
        yield DEADLINE_SECONDS
        if not answered:
            self.beats.standing.answered = False
            answered.append(False)  # what comes now comes too late

    def _ask_scheduler(self, message: Heartbeat, sent: float, answered: list[bool]) -> None:
        broker, host = self.broker, self.host.id

        def take(reply: HeartbeatReply) -> None:
            if not answered:
                answered.append(True)
                self.beats.take(reply, sent)

        def answer(name: str, reply: HeartbeatReply) -> None:
            if broker.sends(name) and broker.hears(host):
                pause = broker.latency() + self.on_answer()
                self.engine.at(self.engine.now + pause, lambda: take(reply), self.process)

        def arrive() -> None:
            for node in self.schedulers:
                if node.process.alive and node.lead is not None and broker.hears(node.name):
                    self.engine.at(
                        self.engine.now,
                        partial(node.on_beat, host, message, partial(answer, node.name)),
                        node.process,
                    )

        broker.send(host, arrive)

    def _inventory(self) -> HostInventory:
        holders = tuple(
            None if holder is None else holder.job
            for holder in map(self.host.holder, self.host.gpus)
        )
        if self._known is None or self._known[0] != holders:
            self._known = holders, self._read_inventory(holders)
        return self._known[1]

    def _read_inventory(self, holders: tuple[str | None, ...]) -> HostInventory:
        gpus = tuple(
            GpuInfo(
                index=index, uuid=uuid, name="NVIDIA A100-SXM4-80GB", memory_mib=81920,
                held_by=holder,
            )
            for index, (uuid, holder) in enumerate(zip(self.host.gpus, holders, strict=True))
        )  # fmt: skip
        shared = ("/shared",) if self.host.shared is not None else ()
        return HostInventory(
            hostname=self.host.id, label=self.host.id, device="cuda", gpus=gpus,
            shared_paths=shared,
        )  # fmt: skip

    # desired states

    def _follow(self) -> Thread:
        while True:
            self._read_control()
            yield READ_SECONDS / 2

    def _read_control(self) -> None:
        """Read everything, or try again soon."""
        try:
            found = self.broker.entries(self.host.id, f"{self.host.id}.")
            self.control.replace(found)
        except BusError:
            self.control.epoch = None
            self._soon("control", 2.0, self._read_control)

    def _on_watch(self, key: str, value: bytes | None) -> None:
        """Hear of a key, in order, a moment after it was written."""
        self._watch_at = max(self._watch_at, self.engine.now + self.broker.latency())
        self.engine.at(self._watch_at, lambda: self._hear(key, value), self.process)

    def _hear(self, key: str, value: bytes | None) -> None:
        heard = self.control._on_key(key, value)
        with contextlib.suppress(StopIteration):
            heard.send(None)

    # relay

    def relay_soon(self) -> None:
        """Publish what is new, a moment from now."""
        self._soon("relay", 0.2, self._relay_once)

    def _relay_rounds(self) -> Thread:
        while True:
            if self.relay.spools:
                self.relay_soon()
            yield 1.0

    def _relay_once(self) -> None:
        self.relay.read_once()
        if self.host.engine.rng.random() < 0.02:
            self.crash("relay")
        for lane in LANES_HERE:
            for _ in range(8):
                if not self._publish_once(lane):
                    break

    def _publish_once(self, lane: str) -> bool:
        """See services.gpu_agent.relay.Relay._publish_once."""
        plan = self.relay._plan(lane)
        if not plan:
            return False
        fine = True
        for spool, stream, batches in plan:
            results = []
            for batch in batches:
                item = self.relay._message(spool, stream, batch)
                result = self.broker.publish(self.host.id, lane, *item)
                results.append(result)
                fine = fine and not isinstance(result, BusError)
            self.relay._settle(spool, stream, results)
        return fine

    def _reconnected(self) -> None:
        if self.process.alive:
            self._soon("epochs", 0.01, self._look_at_epochs)
            self.relay_soon()
            self.control.read_soon()

    def _epochs(self) -> Thread:
        while True:
            self._look_at_epochs()
            yield 10.0

    def _look_at_epochs(self) -> None:
        for lane in LANES_HERE:
            try:
                epoch = self.broker.epoch(self.host.id, lane)
            except BusError:
                self._soon("epochs", 1.0, self._look_at_epochs)
                continue
            if self.relay.note_epoch(lane, epoch) and lane == "RUNS":
                self.relay.on_facts_lost()
            self.relay_soon()

    # confirmations

    def _confirm(self) -> Thread:
        while True:
            yield 2.0
            asked = [s for s in self.relay.spools if _asks(s)]
            if asked:
                cursors = tuple(
                    AttemptCursor(job=s.job, attempt=s.attempt, seq=s.published()) for s in asked
                )
                query = AckQuery(attempts=cursors)
                answers: list[AckReply] = []
                self.api.ask(self.host.id, query, answers.append)
                yield DEADLINE_SECONDS / 2
                if answers:
                    self.confirmations.apply(answers[0])
                    self.confirmations._resend_what_is_stuck(asked)
                    self.relay_soon()
                else:
                    self.confirmations._pardon(asked)
            for spool in self.relay.spools:
                if spool.is_confirmed():
                    self.relay.retire(spool)
