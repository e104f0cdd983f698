"""The scheduler's shell in small: one transaction per commit, an outbox, a relay, heartbeats; the core is the real one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from services.scheduler import leader
from services.scheduler.core import leases
from services.scheduler.core.decisions import (
    Decision,
    DesiredCleared,
    DesiredSet,
    HostSaved,
    Published,
)
from services.scheduler.core.inputs import (
    Beat,
    Input,
    Place,
    Tick,
    mentioned,
    names,
)
from services.scheduler.core.state import ClusterState, Limits, Moment
from services.scheduler.core.step import adopt, references, steps
from services.scheduler.leader import Leadership, LeadershipLost
from shared.bus.port import BusError, PubAck, StreamReset
from shared.events import subjects
from shared.events.base import Envelope
from shared.events.calls import Heartbeat, HeartbeatReply
from tests.faults.simulation.broker import Broker
from tests.faults.simulation.database import Database
from tests.faults.simulation.engine import Crash, Engine, Machine, Process, Thread
from tests.faults.simulation.intake import input_of

NAMES = ("scheduler", "scheduler-2")
_SOURCE = "/trainyard/scheduler"


Observer = Callable[[Sequence[Input], Sequence[Decision]], None]


class SchedulerNode:
    """One scheduler that is started again and again on the same database, perhaps beside another."""

    def __init__(
        self,
        engine: Engine,
        broker: Broker,
        machine: Machine,
        limits: Limits,
        observe: Observer,
        db: Database | None = None,
    ) -> None:
        """Do not start yet. `observe` sees each committed transaction; `db` is the first one's."""
        self.name = NAMES[0 if db is None else 1]
        self.engine = engine
        self.broker = broker
        self.machine = machine
        self.limits = limits
        self.observe = observe
        self.on_grant: Callable[[str, int], None] = lambda host, epoch: None
        """Called when a lease is granted, with the epoch of this leader."""
        self.db = db or Database()
        self.db.contested = db is not None
        self.process = Process(machine, self.name, alive=False)
        self.crash_chance = 0.0
        self.starts = 0
        self.lead: Leadership | None = None
        self.state = ClusterState(limits=limits)
        for stream in ("REQUESTS", "RUNS"):
            broker.readers[stream].append(lambda stream=stream: self._wake_reader(stream))  # type: ignore[misc]
        broker.reconnected[self.name] = self._reconnected

    # life

    def start(self) -> None:
        """Lead as soon as nobody else does."""
        if self.process.alive:
            return
        self.process = Process(self.machine, self.name)
        self.lead = None
        row = self.db.leader.row
        if row is not None and row.holder.partition("/")[0] == self.name:
            row.expires = 0.0  # see services.scheduler.leader.is_dead
        self.engine.spawn(self.process, self._campaign())

    def _campaign(self) -> Thread:
        self.starts += 1
        holder = f"{self.name}/{self.starts}"
        while True:
            self.lead = leader.acquire(self.db.leader, holder, self._unix(), False)  # type: ignore[arg-type]
            if self.lead is not None:
                break
            yield leader.POLL_SECONDS
        self._begin()
        while self.db.contested:
            yield leader.RENEW_SECONDS
            self._fence()

    def _unix(self) -> float:
        return self.engine.wall(self.machine).timestamp()

    def _fence(self) -> None:
        """Renew the lead, as each transaction does; dies when another has it. Without a rival there is nothing to lose."""
        if self.db.contested:
            assert self.lead is not None
            try:
                leader.fence(self.db.leader, self.lead, self._unix())  # type: ignore[arg-type]
            except LeadershipLost:
                self._depose()

    def _depose(self) -> None:
        self.engine.note(self.name, "deposed")
        self.engine.saw("a deposed leader was refused")
        self.process.alive = False
        raise Crash("deposed")

    def _begin(self) -> None:
        self.state = self.db.load(self.now(), self.limits)
        self.ctl_epoch = ""
        self._told: dict[str, str] = {}
        self._pending: set[str] = set()
        self._check_epoch = True
        self._pause = 0.1
        self.engine.note(self.name, "leads", self.lead and self.lead.epoch)
        if self.lead is not None and self.lead.epoch > 1:
            self.engine.saw("another leader")
        self.engine.spawn(self.process, self._seconds())
        for stream in ("REQUESTS", "RUNS"):
            self._wake_reader(stream)

    def kill(self) -> None:
        """Die; what was not committed is gone."""
        if self.process.alive:
            self.engine.note(self.name, "killed")
            self.process.alive = False

    def crash(self, point: str) -> None:
        """Perhaps die right here."""
        if self.crash_chance and self.engine.rng.random() < self.crash_chance:
            self.engine.note(self.name, "crash", point)
            self.engine.saw(f"scheduler crashed {point}")
            self.process.alive = False
            raise Crash(point)

    def now(self) -> Moment:
        """Return this instant on the scheduler's clocks."""
        return Moment(self.engine.wall(self.machine), self.engine.boot(self.machine))

    # deciding

    def commit(
        self, inputs: Sequence[Input], position: tuple[str, str, int] | None = None
    ) -> tuple[Decision, ...]:
        """See services.scheduler.desk.Desk.commit."""
        known = self._with_named_jobs(inputs)
        state, decisions = steps(known, inputs, self.now())
        self.crash("before_commit") if decisions else None
        self.store(inputs, decisions, position)
        self.crash("after_commit") if decisions else None
        self.state = state
        if any(
            isinstance(d, Published | DesiredSet | DesiredCleared | HostSaved) for d in decisions
        ):
            self._soon("relay", 0.005, self._relay)
        if not any(isinstance(one, Place) for one in inputs) and state.queue.standing and decisions:
            self._soon("place", 0.005, self._place)
        return decisions

    def store(
        self,
        inputs: Sequence[Input],
        decisions: Sequence[Decision],
        position: tuple[str, str, int] | None,
    ) -> None:
        """Write decisions and position together."""
        if decisions or position is not None:
            self._fence()
        self.db.apply(decisions)
        self.save_position(position)
        self.observe(inputs, decisions)

    def save_position(self, position: tuple[str, str, int] | None) -> None:
        """Write how far a stream was applied."""
        if position is not None:
            self.db.positions[position[0]] = (position[1], position[2])

    def _with_named_jobs(self, inputs: Sequence[Input]) -> ClusterState:
        state = self.state
        wanted = {j for one in inputs for j in (*names(one), *mentioned(one))}
        for one in inputs:
            for name in names(one):
                job = state.jobs.get(name)
                if job is not None and job.is_ended:
                    wanted |= references(job)
        asked: set[str] = set()
        while missing := sorted(wanted - state.jobs.keys() - asked):
            asked |= set(missing)
            found = self.db.load_jobs(missing)
            state = adopt(state, found, self.now())
            wanted |= {ref for job in found for ref in references(job)}
        return state

    # threads

    def _soon(self, name: str, seconds: float, work: Callable[[], None]) -> None:
        """Do `work` once soon, however often that is asked."""
        if name in self._pending:
            return
        self._pending.add(name)

        def go() -> None:
            self._pending.discard(name)
            work()

        self.engine.after(seconds, go, self.process)

    def _seconds(self) -> Thread:
        for second in itertools.count():
            self.commit([Tick()])
            if self.state.queue.standing:
                self._place()
            self._soon("relay", 0.005, self._relay)
            if second % 10 == 9:
                self._check_epoch = True
                self._fence()
                for host in self.state.hosts.values():
                    if host.seen is not None and host.id in self.db.hosts:
                        stored = self.db.hosts[host.id]
                        self.db.hosts[host.id] = replace(stored, seen=host.seen)
            if second % 20 == 19:
                self._audit()
            if second % 5 == 4:
                for stream in ("REQUESTS", "RUNS"):
                    self._wake_reader(stream)
            yield 1.0

    def _place(self) -> None:
        if self.state.queue.standing:
            self.commit([Place(256, 64)])

    def _wake_reader(self, stream: str, seconds: float | None = None) -> None:
        if self.process.alive and self.lead is not None:
            pause = self.broker.latency() if seconds is None else seconds
            self._soon(stream, pause, lambda: self._read(stream))

    def _read(self, stream: str) -> None:
        epoch, after = self.db.positions.get(stream, ("", 0))
        try:
            items = self.broker.fetch(self.name, stream, epoch or None, after)
        except StreamReset as reset:
            self.engine.note(self.name, "reset", stream, reset.epoch)
            self.commit([], (stream, reset.epoch, 0))
            self._wake_reader(stream)
            return
        except BusError:
            self._wake_reader(stream, 0.5)
            return
        if items:
            last = items[-1][0]
            self.commit([input_of(item) for item in items], (stream, last.epoch, last.seq))
            self._wake_reader(stream)

    def _reconnected(self) -> None:
        self._check_epoch = True
        if self.process.alive and self.lead is not None:
            self._soon("relay", 0.01, self._relay)

    # heartbeats

    def on_beat(
        self, host: str, message: Heartbeat, answer: Callable[[HeartbeatReply], None]
    ) -> None:
        """Store a heartbeat, then answer it, if this is the leader."""
        assert self.lead is not None
        if self.db.contested:
            try:
                leader.check(self.db.leader, self.lead)  # type: ignore[arg-type]
            except LeadershipLost:
                self.engine.saw("a deposed leader was asked")
                return
        beat = Beat(host, message)
        reply = leases.reply(self.state, beat, self.now(), self.ctl_epoch, self.lead.epoch)
        self.commit([beat])
        if reply.ok:
            self.on_grant(host, self.lead.epoch)
        held = leases.held(self.state, host, self.now()) if reply.ok else ()
        answer(reply.model_copy(update={"held": held}))

    # carrying out; see services.scheduler.execute

    def _relay(self) -> None:
        try:
            self._relay_once()
        except BusError:
            self._soon("relay", self._pause, self._relay)
            self._pause = min(self._pause * 2, 2.0)
        else:
            self._pause = 0.1

    def _relay_once(self) -> None:
        if self._check_epoch:
            epoch = self.broker.epoch(self.name, "JOBS")
            known = self.db.positions.get("JOBS", ("", 0))[0]
            if known != epoch:
                for row in self.db.outbox:
                    if row.published not in (None, epoch):
                        row.published = None
                self.db.positions["JOBS"] = (epoch, 0)
            self._check_epoch = False
        self._publish_all()
        self.crash("after_publish")
        epoch = self._ctl_epoch()
        if epoch != self.ctl_epoch:
            self.ctl_epoch = ""
            self._told.clear()
            self._remove_strangers()
        self._write_all(epoch)
        self.crash("after_write")
        for host in self.state.hosts.values():
            if self._told.get(host.id) != epoch:
                value = json.dumps({"epoch": epoch}).encode()
                self.broker.put(self.name, subjects.control_epoch_key(host.id), value)
                self._told[host.id] = epoch
        self.ctl_epoch = epoch

    def _ctl_epoch(self) -> str:
        self.broker.require(self.name)
        return self.broker.ctl_epoch

    def _publish_all(self) -> None:
        rows = [row for row in self.db.outbox if row.published is None]
        if not rows:
            return
        epoch = self.broker.epoch(self.name, "JOBS")
        failed: dict[str, BusError] = {}
        for row in rows:
            job = row.event.state.job
            if job in failed:
                continue  # the next event of a job waits for this one
            envelope = Envelope(str(row.id), _SOURCE, row.event.at)
            result = self.broker.publish(
                self.name, "JOBS", subjects.job(job), row.event, envelope, str(row.id)
            )
            if isinstance(result, PubAck):
                self.crash("before_mark_published")
                row.published = epoch
            else:
                failed[job] = result
        if failed:
            raise next(iter(failed.values()))

    def _write_all(self, epoch: str) -> None:
        first = next((row.id for row in self.db.outbox if row.published is None), None)
        for key, row in sorted(self.db.desired.items(), key=lambda kv: kv[1].outbox_id):
            if row.version == row.written_version and row.written_epoch == epoch:
                continue
            if first is not None and row.outbox_id >= first:
                continue
            value = None
            if row.entry is not None:
                value = row.entry.model_copy(update={"epoch": epoch}).model_dump_json().encode()
            self.broker.put(self.name, subjects.control_key(*key), value)
            if row.entry is None:
                del self.db.desired[key]
            else:
                row.written_version, row.written_epoch = row.version, epoch

    def _remove_strangers(self) -> None:
        there = self.broker.entries(self.name, "")
        known = {
            subjects.control_key(*k) for k, r in self.db.desired.items() if r.entry is not None
        }
        known |= {subjects.control_epoch_key(host) for host in self.state.hosts}
        for key in sorted(set(there) - known):
            self.broker.put(self.name, key, None)
            self._told.pop(key.partition(".")[0], None)

    def _audit(self) -> None:
        if not self.ctl_epoch:
            return
        try:
            there = self.broker.entries(self.name, "")
            for key, row in self.db.desired.items():
                if row.entry is None:
                    continue
                value = row.entry.model_copy(update={"epoch": self.ctl_epoch}).model_dump_json()
                if there.get(subjects.control_key(*key)) != value.encode():
                    row.written_epoch = ""
            self._remove_strangers()
        except BusError:
            return
