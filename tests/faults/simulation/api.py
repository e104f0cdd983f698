"""The api in small: requests with an outbox, and the real projections over tables in memory."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.api.db.positions import START, Position
from services.api.db.tables import AttemptRow, JobRow
from services.api.projections import telemetry
from services.api.projections.fence import fresh_items
from services.api.projections.main import Item, apply_main
from services.api.telemetry import acks
from shared.bus.port import BusError, PubAck, StreamReset
from shared.events import subjects
from shared.events.base import Envelope
from shared.events.calls import AckQuery, AckReply
from shared.events.requests import HostDrainRequested, JobSubmitRequested, RequestBase
from shared.events.subjects import RunSubject
from tests.faults.simulation.broker import Broker
from tests.faults.simulation.checks import Checks
from tests.faults.simulation.engine import Crash, Engine, Machine, Process, Thread
from tests.faults.simulation.tables import MemoryLedger, MemorySession

NODE = "api"
STREAMS = ("JOBS", "RUNS", "METRICS")
TERMINAL = ("COMPLETED", "FAILED", "CANCELLED")


@dataclass
class RequestRow:
    """A user's request, which is its own outbox row."""

    subject: str
    event: RequestBase | HostDrainRequested
    epoch: str | None = None


class ApiNode:
    """One api that is started again and again on the same databases."""

    def __init__(self, engine: Engine, broker: Broker, machine: Machine, checks: Checks) -> None:
        """Do not start yet."""
        self.engine = engine
        self.broker = broker
        self.machine = machine
        self.checks = checks
        self.process = Process(machine, NODE, alive=False)
        self.crash_chance = 0.0
        self.main = MemorySession()
        self.ledger = MemoryLedger(checks)
        self.requests: list[RequestRow] = []
        self.host_n: dict[str, int] = {}
        self.positions: dict[str, dict[str, Position]] = {
            "main": dict.fromkeys(STREAMS, START), "telemetry": dict.fromkeys(STREAMS, START)
        }  # fmt: skip
        for stream in STREAMS:
            broker.readers[stream].append(lambda stream=stream: self._wake_reader(stream))  # type: ignore[misc]
        broker.reconnected[NODE] = self._outbox_soon

    # life

    def start(self) -> None:
        """Read on from the stored positions."""
        if self.process.alive:
            return
        self.process = Process(self.machine, NODE)
        self._pending: set[str] = set()
        self.engine.note(NODE, "started")
        for stream in ("JOBS", "RUNS"):
            main, told = self.positions["main"][stream], self.positions["telemetry"][stream]
            after = told.last_seq if told.epoch == main.epoch else 0
            if main.last_seq > after:
                self.positions["main"][stream] = Position(main.epoch, after)
        self.engine.spawn(self.process, self._rounds())

    def kill(self) -> None:
        """Die."""
        if self.process.alive:
            self.engine.note(NODE, "killed")
            self.process.alive = False

    def crash(self, point: str) -> None:
        """Perhaps die right here."""
        if self.crash_chance and self.engine.rng.random() < self.crash_chance:
            self.engine.note(NODE, "crash", point)
            self.engine.saw(f"api crashed {point}")
            self.process.alive = False
            raise Crash(point)

    def _rounds(self) -> Thread:
        while True:
            for stream in STREAMS:
                self._wake_reader(stream)
            self._outbox_soon()
            yield 5.0

    def _soon(self, name: str, seconds: float, work: Callable[[], None]) -> None:
        if not self.process.alive or name in self._pending:
            return
        self._pending.add(name)

        def go() -> None:
            self._pending.discard(name)
            work()

        self.engine.after(seconds, go, self.process)

    # requests

    def submit(self, event: JobSubmitRequested) -> bool:
        """Accept a job: acknowledged is what this returns True for."""
        if not self.process.alive or self.machine.frozen:
            return False
        row = JobRow(
            uuid=event.job,
            name=event.name,
            algorithm="sft",
            config={},
            created_at=event.at,
            req_n=1,
        )
        self.main.add(row)
        self._ask(RequestRow(subjects.request(event.job), event))
        return True

    def act(self, kind: type[Any], job: str, **fields: Any) -> bool:
        """Accept a request about a job."""
        row = self.main.get(JobRow, job)
        if not self.process.alive or self.machine.frozen or row is None:
            return False
        row.req_n += 1
        event = kind(job=job, req_n=row.req_n, at=self.engine.wall(self.machine), **fields)
        self._ask(RequestRow(subjects.request(job), event))
        return True

    def drain(self, host: str, drained: bool, stop_jobs: bool) -> bool:
        """Accept a request about a host."""
        if not self.process.alive or self.machine.frozen:
            return False
        self.host_n[host] = self.host_n.get(host, 0) + 1
        event = HostDrainRequested(
            host=host, req_n=self.host_n[host], at=self.engine.wall(self.machine),
            drained=drained, stop_jobs=stop_jobs,
        )  # fmt: skip
        self._ask(RequestRow(subjects.host_request(host), event))
        return True

    def _ask(self, row: RequestRow) -> None:
        self.requests.append(row)
        self.engine.note("user", row.event.type.split(".")[2], row.subject[-4:], row.event.req_n)  # type: ignore[union-attr]
        self._outbox_soon()

    def _outbox_soon(self) -> None:
        self._soon("outbox", 0.01, self._publish)

    def _publish(self) -> None:
        """See services.api.outbox."""
        try:
            epoch = self.broker.epoch(NODE, "REQUESTS")
        except BusError:
            self._soon("outbox", 0.5, self._publish)
            return
        failed: set[str] = set()
        for n, row in enumerate(self.requests):
            if row.subject in failed or not self._is_unsent(row, epoch):
                continue
            envelope = Envelope(str(n), "/trainyard/api", row.event.at)
            result = self.broker.publish(NODE, "REQUESTS", row.subject, row.event, envelope, str(n))
            if isinstance(result, PubAck):
                self.crash("request_published")
                row.epoch = epoch
            else:
                failed.add(row.subject)
        if failed:
            self._soon("outbox", 0.5, self._publish)

    def _is_unsent(self, row: RequestRow, epoch: str) -> bool:
        if row.epoch is None or row.epoch == epoch:
            return row.epoch is None
        if isinstance(row.event, HostDrainRequested):
            return True
        job = self.main.get(JobRow, row.event.job)
        return bool(job.status not in TERMINAL or job.answered_n < job.req_n)

    # projections

    def _wake_reader(self, stream: str, seconds: float | None = None) -> None:
        pause = self.broker.latency() if seconds is None else seconds
        self._soon(stream, pause, lambda: self._read(stream))

    def _read(self, stream: str) -> None:
        """Apply what is new; see services.api.projections.stream."""
        try:
            more = self.read_once(stream)
        except BusError:
            self._wake_reader(stream, 0.5)
            return
        if more:
            self._wake_reader(stream)

    def read_once(self, stream: str) -> bool:
        """Fetch and store once; tell whether there may be more. Raises BusError."""
        found = [self.positions[db][stream] for db in ("telemetry", "main")]
        if stream == "METRICS":
            found = found[:1]
        epoch = next((p.epoch for p in reversed(found) if p.epoch is not None), None)
        after = min(p.last_seq if p.epoch == epoch else 0 for p in found)
        try:
            items = self.broker.fetch(NODE, stream, epoch, after)
        except StreamReset as reset:
            self.engine.note(NODE, "reset", stream, reset.epoch)
            for db in ("main", "telemetry"):
                self.positions[db][stream] = Position(reset.epoch, 0)
            return True
        if not items:
            return False
        if stream != "JOBS":
            self._know(items)
        last = items[-1][0]
        reached = Position(last.epoch, last.seq)
        if stream != "METRICS":
            self.store("main", stream, items, reached)
            self.crash("between_databases")
        self.store("telemetry", stream, items, reached)
        return True

    def _know(self, items: Sequence[Item]) -> None:
        wanted = {(s.job, s.attempt) for m, _, _ in items for s in [RunSubject.parse(m.subject)]}
        if wanted - self.ledger.attempts.keys():
            while self.read_once("JOBS"):
                pass

    def store(self, db: str, stream: str, items: Sequence[Item], reached: Position) -> None:
        """Store rows and position in one transaction."""
        applied = self.positions[db][stream]
        if applied.epoch == reached.epoch and applied.last_seq >= reached.last_seq:
            return
        self.crash("before_store")
        self.apply(db, stream, fresh_items(applied, items))
        self.save_position(db, stream, reached)
        self.crash("after_store")

    def save_position(self, db: str, stream: str, reached: Position) -> None:
        """Write how far a stream is stored."""
        self.positions[db][stream] = reached

    def apply(self, db: str, stream: str, fresh: Sequence[Item]) -> None:
        """Change the rows by the product's own code."""
        if db == "main" and stream == "JOBS":
            apply_main(self.main, stream, fresh)  # type: ignore[arg-type]
            return
        if db == "main":
            for item in fresh:
                before = self._main_seq(item)
                apply_main(self.main, stream, [item])  # type: ignore[arg-type]
                if before is not None and self._main_seq(item) != before:
                    where = RunSubject.parse(item[0].subject)
                    self.checks.main_stored(where, before[0], before[1])
            return
        if stream == "JOBS":
            self.checks.api_jobs(fresh, self.ledger)
            telemetry.apply_jobs(self.ledger, fresh, 0.0)
        elif stream == "RUNS":
            telemetry.apply_run_facts(self.ledger, fresh, telemetry.Outcome())
            self.checks.api_runs(self.ledger)
        else:
            for item in fresh:
                self.checks.said_at = item[0].time
                telemetry.apply_batches(self.ledger, [item], telemetry.Outcome())
            self.checks.said_at = None

    def _main_seq(self, item: Item) -> tuple[bool, int] | None:
        """Return (is this attempt superseded without a proper end, last number stored)."""
        where = RunSubject.parse(item[0].subject)
        row = self.main.get(AttemptRow, (where.job, where.attempt))
        job = self.main.get(JobRow, where.job)
        if row is None or job is None:
            return None
        newer = range(where.attempt + 1, job.attempt + 1)
        rows = [self.main.get(AttemptRow, (where.job, n)) for n in newer]
        moved = any(other.host != row.host for other in rows if other is not None)
        return moved and row.final_seq is None, row.last_run_seq

    # confirmations

    def ask(self, host: str, query: AckQuery, take: Callable[[AckReply], None]) -> None:
        """Answer `ack.<host>` over the broker."""
        broker = self.broker

        def reply() -> None:
            found = _answer(self.ledger, host, query)
            if broker.sends(NODE) and broker.hears(host):
                self.engine.at(self.engine.now + broker.latency(), lambda: take(found))

        def arrive() -> None:
            if broker.hears(NODE) and self.process.alive:
                self.engine.after(0.0, reply, self.process)

        broker.send(host, arrive)


def _answer(ledger: MemoryLedger, host: str, query: AckQuery) -> AckReply:
    world = {**acks.__dict__, "Ledger": lambda session, _: session}
    found: AckReply = types.FunctionType(acks.answer.__code__, world)(ledger, host, query)
    return found
