"""The promises, each looked at whenever something could break it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from services.scheduler.core.decisions import (
    AttemptSaved,
    CheckpointSaved,
    Counted,
    Decision,
    Published,
)
from services.scheduler.core.inputs import FactArrived, Input
from services.scheduler.core.state import Checkpoint
from shared.events.job import JobEventBase
from shared.events.subjects import RunSubject
from shared.jobs.lifecycle import Change
from tests.faults.simulation.engine import Engine, Violation
from tests.faults.simulation.host import AttemptDir, SimHost, Trainer

CLOSED = frozenset({"ended", "refused", "fenced"})
ENDS = frozenset(
    {Change.REQUEUED, Change.PAUSED, Change.COMPLETED, Change.FAILED, Change.CANCELLED}
)
TICK = 2.0 / 0.98 + 0.05
"""Seconds: one tick of the lease watch on the slowest clock, and the milliseconds that waking up takes here."""
Key = tuple[str, int]


class Checks:
    """Knows more than any part of the product: it sees every commit and every process."""

    def __init__(self, engine: Engine) -> None:
        """Begin with nothing seen."""
        self.engine = engine
        self.newest: dict[str, int] = {}
        self.status: dict[Key, str] = {}
        self.host_of: dict[Key, str] = {}
        self.folded: set[Key] = set()
        """Attempts whose last fact the scheduler has taken as theirs."""
        self.job_n: dict[str, int] = {}
        self.checkpoints: set[tuple[str, str, int, int, int]] = set()
        self.files: dict[tuple[str, str, int], AttemptDir] = {}
        self.lines: dict[tuple[str, int, str], list[int]] = defaultdict(list)
        self.api_newest: dict[str, int] = {}
        self.api_job_n: dict[str, int] = {}
        self.closed: set[Key] = set()
        self.fenced: dict[Key, datetime] = {}
        """Attempts given up → when the broker had the assignment of a later one."""
        self.deleted: set[str] = set()
        """Jobs that the api knows to be deleted."""
        self.said_at: datetime | None = None
        """When the broker had the batch that is being stored; None: this is a fact."""
        self.alive: dict[str, list[tuple[Trainer, SimHost]]] = defaultdict(list)
        self.ever_started: set[Key] = set()
        self.overlap: dict[tuple[str, int, int], float] = defaultdict(float)
        """For how long two attempts of a job ran at a time."""
        self.beyond: dict[tuple[str, int, int], float] = defaultdict(float)
        """How much of that was not within a tick after the older one's host woke up."""
        self.excused: set[Key] = set()
        """Attempts whose host may go on by policy or by the user's word, or whose shim was killed."""
        self.stop_policy: set[str] = set()
        self._since = 0.0
        self.most_overlap = 0.0

    def fail(self, what: str, *detail: object) -> None:
        """Say that a promise is broken."""
        text = " ".join(str(d) for d in detail)
        self.engine.note("VIOLATION", what, *detail)
        raise Violation(f"{what}: {text}")

    # the scheduler's transactions

    def committed(self, inputs: Sequence[Input], decisions: Sequence[Decision]) -> None:
        """Look at one transaction."""
        facts = {(i.job, i.attempt) for i in inputs if isinstance(i, FactArrived)}
        only_facts = bool(facts) and len(inputs) == sum(isinstance(i, FactArrived) for i in inputs)
        for one in decisions:
            if isinstance(one, AttemptSaved):
                self._attempt(one, facts, only_facts)
            elif isinstance(one, Published):
                self._published(one)
            elif isinstance(one, CheckpointSaved):
                self._checkpoint(one)
            elif isinstance(one, Counted):
                self.engine.saw(f"the scheduler counted: {one.name}")

    def _attempt(self, one: AttemptSaved, facts: set[Key], only_facts: bool) -> None:
        key = (one.job, one.attempt)
        newest = self.newest.get(one.job, 0)
        if one.status == "fenced":
            self.engine.saw("an attempt was fenced")
            self._given_away(key)
        self.engine.note("books", one.status, one.job[-2:], one.attempt, one.host, one.reason)
        if one.status == "assigned":
            if one.attempt <= newest:
                self.fail("an attempt number was used again", *key)
            before = self.status.get((one.job, newest))
            if before is not None and before not in CLOSED:
                self.fail("two attempts count at a time", one.job, newest, one.attempt)
            self.newest[one.job] = one.attempt
            self.host_of[key] = one.host
        elif one.attempt != newest or self.status[key] in CLOSED:
            self.fail("a stale attempt changed the books", *key, one.status)
        elif only_facts and key not in facts:
            self.fail("a fact of another attempt was taken", *key, one.status, facts)
        if only_facts and one.status in ("ended", "refused"):
            self.folded.add(key)
        self.status[key] = one.status

    def _given_away(self, key: Key) -> None:
        """What is requeued on silence must be dead by now, unless its host is frozen or has just woken up."""
        if key[0] not in self.stop_policy or key in self.excused:
            return
        for trainer, host in self.alive[key[0]]:
            if trainer.files.attempt != key[1]:
                continue
            if not self._may_not_know(host):
                self.fail("an attempt was given away while it ran", *key, host.id)
            self._ends_soon(key, trainer, host)

    def _may_not_know(self, host: SimHost) -> bool:
        """Tell whether a whole host is frozen, or was until a moment ago."""
        woken = self.engine.now - host.machine.thawed_at <= TICK
        return host.machine.frozen or woken

    def _ends_soon(self, key: Key, trainer: Trainer, host: SimHost) -> None:
        """One tick after its host woke up, what was given away meanwhile is dead."""

        def look() -> None:
            if not trainer.process.alive or trainer.files.shim_killed:
                return
            if not self._may_not_know(host):
                self.fail("an attempt that was given away runs on", *key, host.id)
            self.engine.at(self.engine.now + 1.0, look)

        look()

    def _published(self, one: Published) -> None:
        state = one.state
        if one.change not in (Change.UPDATED, Change.CHECKPOINTED):
            self.engine.note(
                "job", one.change, state.job[-2:], state.attempt, state.status, state.reason
            )
        if state.job_n != self.job_n.get(state.job, 0) + 1:
            self.fail("job_n is not dense", state.job, state.job_n)
        self.job_n[state.job] = state.job_n

    def _checkpoint(self, one: CheckpointSaved) -> None:
        kept = one.checkpoint
        known = (one.job, kept.host, kept.step, kept.attempt, kept.seq)
        if known not in self.checkpoints and kept.attempt < self.newest.get(one.job, 0):
            self.fail("a checkpoint of a stale attempt was stored", *known)
        self.checkpoints.add(known)

    def led_to(self, job: str, kept: Checkpoint, numbers: Mapping[str, int]) -> None:
        """Look at a checkpoint that the scheduler stores: the metrics in front of it are in their stream, up to `numbers` by subject."""
        key = (job, kept.attempt)
        files = self.files.get((kept.host, *key))
        if files is None or key in self.fenced or job in self.deleted:
            return  # what an attempt that the api refuses has measured is not sent
        wanted = sum(step <= kept.step for step in files.metric_steps)
        found = numbers.get(str(RunSubject("met", kept.host, *key)), 0)
        if found < wanted:
            self.fail("a checkpoint was told before its metrics", *key, found, wanted)

    # the api's transactions

    def api_jobs(self, items: Sequence[Any], ledger: Any) -> None:
        """Note which attempts are fenced from here on: a newer one is there, elsewhere, and they had not ended properly."""
        for message, _, event in items:
            if not isinstance(event, JobEventBase):
                continue
            state = event.state
            if state.job_n <= self.api_job_n.get(state.job, 0):
                continue
            self.api_job_n[state.job] = state.job_n
            if state.deleted:
                self.deleted.add(state.job)
            for older in range(1, state.attempt):
                moved = state.host and self.host_of.get((state.job, older)) != state.host
                if moved and (state.job, older) not in self.closed:
                    self.fenced.setdefault((state.job, older), message.time)
            if event.change in ENDS and state.final_seq is not None:
                self.closed.add((state.job, state.attempt))

    def api_runs(self, ledger: Any) -> None:
        """Note which attempts have ended."""
        self.closed |= {key for key, row in ledger.attempts.items() if row.ended}

    def main_stored(self, where: RunSubject, stale: bool, before: int) -> None:
        """Look at a fact that the main database took."""
        key = (where.job, where.attempt)
        if stale:
            self.fail("a stale attempt's fact was stored", *key, before)
        self._right_host(key, where.host)

    def _right_host(self, key: Key, host: str) -> None:
        if self.host_of.get(key) != host:
            self.fail("a fact of a host without the attempt was stored", *key, host)

    def stored(self, job: str, attempt: int, kind: str, step: int) -> None:
        """Look at one line of telemetry that was stored."""
        key = (job, attempt)
        fenced = self.fenced.get(key)
        if fenced is not None and (self.said_at is None or self.said_at > fenced):
            self.fail("a stale attempt's telemetry was stored", *key, kind, step)
        lines = self.lines[job, attempt, kind]
        lines.append(step)
        files = self.files.get((self.host_of.get(key, ""), job, attempt))
        if files is None:
            return
        wanted = self.written(files, kind)
        if len(lines) > len(wanted) or wanted[len(lines) - 1] != step:
            self.fail("a line is missing or doubled", *key, kind, lines[-3:], wanted[-3:])

    def written(self, files: AttemptDir, kind: str) -> list[int]:
        """Return the steps that the host wrote."""
        if kind == "met":
            return files.metric_steps
        return [int(r["step"]) for r in files.records if r["type"] == "run.checkpoint.v1"]

    # processes

    def account(self) -> None:
        """Add up for how long two attempts of a job ran at a time; a frozen host runs nothing."""
        passed, self._since = self.engine.now - self._since, self.engine.now
        if passed <= 0:
            return
        for job, trainers in self.alive.items():
            if len(trainers) < 2:
                continue
            running = sorted(
                (t.files.attempt, host.machine.thawed_at)
                for t, host in trainers
                if not host.machine.frozen
            )
            for n, (older, woken) in enumerate(running):
                beyond = min(passed, max(0.0, self.engine.now - (woken + TICK)))
                for newer, _ in running[n + 1 :]:
                    self.overlap[job, older, newer] += passed
                    self.beyond[job, older, newer] += beyond

    def trainer(self, host: SimHost, trainer: Trainer, started: bool) -> None:
        """Note that a trainer began or ended."""
        self.account()
        files = trainer.files
        key = (files.job, files.attempt)
        mine = self.alive[files.job]
        if not started:
            mine[:] = [(t, h) for t, h in mine if t is not trainer]
            self.engine.note(trainer.process.name, "ends", host.id, trainer.code, trainer.signal)
            if trainer.watch is not None and trainer.watch.lost:
                self.engine.saw(
                    "a shim killed its trainer"
                    if trainer.signal == 9
                    else "a shim stopped its trainer"
                )
            return
        self.engine.note(trainer.process.name, "begins", host.id)
        if key in self.ever_started:
            self.fail("an attempt was started twice", *key)
        self.ever_started.add(key)
        away = key[0] in self.stop_policy and self.status.get(key) == "fenced"
        if away and key not in self.excused and not self._may_not_know(host):
            self.fail("an attempt began that was given away", *key, host.id)
        for others in self.alive.values():
            for other, where in others:
                if where is host and set(other.gpus) & set(trainer.gpus):
                    self.fail("a GPU is held by two runs", *key, host.id, trainer.gpus)
                if other.files.job == files.job and where is host:
                    self.fail("two attempts run on one host", *key, host.id)
        mine.append((trainer, host))

    def judge_overlaps(self) -> None:
        """Compare what was added up with what is allowed: nothing, but for one tick after a whole-host pause."""
        self.account()
        for (job, older, newer), seconds in self.overlap.items():
            if job not in self.stop_policy or (job, older) in self.excused:
                continue
            self.most_overlap = max(self.most_overlap, seconds)
            self.engine.saw("an overlap after a pause")
            if self.beyond[job, older, newer] > 1e-9:
                host = self.host_of[job, older]
                self.fail("two attempts ran at a time", job, older, newer, host, f"{seconds:.2f} s")
