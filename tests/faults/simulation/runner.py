"""The agent's runner in small: the real reconciler and the real verdict on endings, over simulated processes."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

from services.gpu_agent.core.exits import Ending, Evidence, classify
from services.gpu_agent.core.numbering import Position
from services.gpu_agent.core.reconcile import (
    Action,
    Collect,
    EndUnstarted,
    Phase,
    Refuse,
    RunView,
    Start,
    Stop,
    reconcile,
)
from services.gpu_agent.relay import Relay
from services.gpu_agent.runner import RESEND_SECONDS, RETRY_SECONDS
from shared.events.calls import ControlEntry, RunReport
from shared.events.run import (
    RunAccepted,
    RunCollected,
    RunExited,
    RunRefused,
    RunStarted,
)
from shared.jobs.reasons import Reason
from tests.faults.simulation.engine import Thread
from tests.faults.simulation.host import AttemptDir
from tests.faults.simulation.spool import MemorySpool

if TYPE_CHECKING:
    from tests.faults.simulation.agent import SimAgent

NEVER = float("inf")
START_SECONDS = 5.0
"""A quarter of what the launcher waits for a shim's word."""


class Begun(Exception):
    """See services.gpu_agent.run."""


class SimRun:
    """See services.gpu_agent.run.Run."""

    def __init__(self, agent: SimAgent, files: AttemptDir) -> None:
        """Open the spool; the phase is what the files say."""
        self.agent = agent
        self.files = files
        self.spool = MemorySpool(files, agent.clock.boot())
        self.phase = Phase.NEW
        self.stopping: str | None = None
        self.stop_by = NEVER
        self.resend_at = NEVER

    @property
    def job(self) -> str:
        return self.files.job

    @property
    def attempt(self) -> int:
        return self.files.attempt

    @property
    def view(self) -> RunView:
        collected = self.spool.facts.has(RunCollected)
        return RunView(self.job, self.attempt, self.phase, self.stopping, collected)

    def look(self) -> Phase:
        if self.spool.facts.is_closed:
            return Phase.ENDED
        if self.files.boot_id is None:
            return Phase.NEW
        return Phase.ALIVE if self.files.holds_locks else Phase.GONE

    def stop(self, mode: str, grace: float) -> Thread:
        """SIGTERM, and after `grace` seconds SIGKILL to all that is left."""
        self.stopping = mode
        wall = self.agent.host.wall()
        deadline = wall + grace
        known = self.files.stop
        if known is not None and known.get("mode") == mode:
            deadline = min(deadline, known["deadline"])
        self.files.stop = {"mode": mode, "deadline": deadline}
        self.stop_by = deadline
        self.agent.note("stop", self.job[-2:], self.attempt, mode)
        self.agent.host.on_stop(self.files)
        trainer = self.files.trainer
        if trainer is not None:
            self.agent.host.signal(trainer, signal.SIGTERM)
        while self.files.holds_locks:
            left = self.stop_by - self.agent.host.wall()
            if left <= 0:
                break
            yield min(1.0, left)
        if self.files.trainer is not None:
            self.agent.host.signal(self.files.trainer, signal.SIGKILL)
        while self.files.holds_locks:
            yield 0.05

    def hasten(self, mode: str, grace: float) -> None:
        """Turn a stop that is under way into another."""
        if self.stop_by != NEVER:
            self.stopping = mode
            self.stop_by = min(self.stop_by, self.agent.host.wall() + grace)
            self.files.stop = {"mode": mode, "deadline": self.stop_by}

    def finish(self) -> None:
        """Find out how it ended and write the last fact."""
        ending = classify(
            Evidence(
                result=self.files.result,
                exit=self.files.exit,
                stop_mode=(self.files.stop or {}).get("mode"),
                rebooted=self.files.boot_id != self.agent.host.machine.boot_id,
            )
        )
        self.spool.note_all_checkpoints()
        self.end(ending, self.spool.find_ends())

    def end(self, ending: Ending, ends: dict[str, Position] | None = None) -> None:
        """Write `exited`; see services.gpu_agent.run.Run.end."""
        if ends is None:
            self.bar()
        ends = self.spool.find_ends() if ends is None else ends
        last_seq = {kind: p.seq for kind, p in ends.items()}
        last_seq["run"] = self.spool.facts.last_seq + 1
        fact = RunExited(
            seq=0,
            t=self.agent.host.wall(),
            outcome=ending.outcome,
            reason=ending.reason,
            stop_cause=ending.stop_cause,
            step=ending.step,
            last_seq=last_seq,
        )
        self.spool.facts.append(fact, ends=ends)
        self.agent.crash("exited_written")
        self.spool.close(ends)
        self.phase = Phase.ENDED
        self.agent.note("exited", self.job[-2:], self.attempt, ending.outcome, ending.reason)
        self.agent.relay_soon()

    def bar(self) -> None:
        """See services.gpu_agent.run.Run.bar."""
        if not self.files.claims("agent"):
            raise Begun


class SimRunner:
    """See services.gpu_agent.runner.Runner."""

    def __init__(self, agent: SimAgent, relay: Relay) -> None:
        """Adopt what is on disk."""
        self.agent = agent
        self.relay = relay
        self.runs: dict[tuple[str, int], SimRun] = {}
        self.entries: dict[str, ControlEntry] = {}
        self.complete = False
        self.accepting = True
        self._busy: set[str] = set()
        self._pending = False

    def adopt(self) -> None:
        """Find every attempt."""
        for files in self.agent.host.attempts.values():
            run = SimRun(self.agent, files)
            self.runs[run.job, run.attempt] = run
            run.phase = run.look()
            if not run.spool.done:
                self.relay.add(run.spool)
            if run.phase in (Phase.ALIVE, Phase.GONE):
                self.agent.note("adopted", run.job[-2:], run.attempt, run.phase)
                self._watch(run)

    def wake(self) -> None:
        """Reconcile soon."""
        if not self._pending:
            self._pending = True
            self.agent.after(0.01, self._woken)

    def _woken(self) -> None:
        self._pending = False
        self.reconcile_once()

    def rounds(self) -> Thread:
        """Reconcile every few seconds."""
        while True:
            self.reconcile_once()
            yield RETRY_SECONDS

    def reconcile_once(self) -> None:
        """Begin what is to be done now; one thing at a time for each job."""
        views = [run.view for run in self.runs.values()]
        for action in reconcile(
            self.entries, views, complete=self.complete, accepting=self.accepting
        ):
            if isinstance(action, Start) and not self.agent.may_start(action.entry):
                continue
            job = action.entry.job if isinstance(action, Start | Refuse | Collect) else action.job
            if isinstance(action, Stop) and action.mode == "cancel" and job in self._busy:
                self.runs[job, action.attempt].hasten(action.mode, action.grace)
            if job not in self._busy:
                self._busy.add(job)
                self.agent.spawn(self._do(action), lambda job=job: self._done(job))  # type: ignore[misc]
        self._send_again()
        self._sweep()

    def _done(self, job: str) -> None:
        self._busy.discard(job)
        self.wake()

    def _do(self, action: Action) -> Thread:
        try:
            yield from self._act(action)
        except Begun:
            entry = action.entry if isinstance(action, Start | Refuse | Collect) else action
            run = self.runs[entry.job, entry.attempt]
            self.agent.note("begun late", run.job[-2:], run.attempt)
            self.agent.engine.saw("a start was begun after its agent gave it up")
            run.phase = Phase.ALIVE
            self._watch(run)
        self.agent.relay_soon()

    def _act(self, action: Action) -> Thread:
        yield 0.0
        match action:
            case Start(entry):
                yield from self._start(entry)
            case Stop(job, attempt, mode, grace):
                yield from self.runs[job, attempt].stop(mode, grace)
            case EndUnstarted(job, attempt, mode):
                self._new(job, attempt).end(Ending(outcome="stopped", stop_cause=mode))
            case Refuse(entry):
                self._refuse(self._new(entry.job, entry.attempt), Reason.HOST_DRAINED)
            case Collect(entry):
                yield 0.01
                self._collect(entry)

    def _refuse(self, run: SimRun, reason: Reason) -> None:
        run.bar()
        run.spool.facts.append(RunRefused(seq=0, t=self.agent.host.wall(), reason=reason))
        run.phase = Phase.ENDED
        self.agent.note("refused", run.job[-2:], run.attempt, reason)

    def _new(self, job: str, attempt: int, entry: ControlEntry | None = None) -> SimRun:
        known = self.runs.get((job, attempt))
        if known is not None:
            return known
        files = AttemptDir(job, attempt, entry=entry)
        self.agent.host.attempts[job, attempt] = files
        run = SimRun(self.agent, files)
        self.runs[job, attempt] = run
        self.relay.add(run.spool)
        return run

    def _start(self, entry: ControlEntry) -> Thread:
        """See services.gpu_agent.starting.Starter.start."""
        run = self._new(entry.job, entry.attempt, entry)
        rng = self.agent.engine.rng
        yield rng.uniform(0.02, 0.5) if rng.random() < 0.9 else rng.uniform(0.5, 6.0)
        if not run.spool.facts.has(RunAccepted):
            run.spool.facts.append(RunAccepted(seq=0, t=self.agent.host.wall()))
            self.agent.relay_soon()
        yield rng.uniform(0.01, 0.3)
        run.files.launch = {
            "locks": [f"job:{entry.job}", *entry.gpu_uuids],
            "policy": entry.disconnect_policy,
            "stop_after": entry.stop_after_seconds,
            "grace": min(entry.grace_seconds, entry.kill_grace_seconds),
            "lease": "lease.json",
            "leased": self.agent.host.lease,
        }
        wanted = self.entries.get(entry.job)
        still = wanted is not None and (wanted.attempt, wanted.desired) == (entry.attempt, "run")
        still = still and self.agent.may_start(entry)
        if run.phase is Phase.ENDED or not still:
            return
        answer: list[str] = []
        self.agent.host.launch(run.files, answer.append)
        waited, pause = 0.0, 0.02
        while not answer and waited < START_SECONDS:
            yield pause
            waited, pause = waited + pause, min(pause * 2, 0.5)
        outcome = answer[0] if answer else "failed"
        if outcome != "ok" and not run.files.holds_locks:
            with contextlib.suppress(Begun):
                if outcome == "locked":
                    self._refuse(run, Reason.HOST_REFUSED)
                else:
                    run.end(Ending(outcome="failed", reason=Reason.START_FAILED))
                return
        run.phase = Phase.ALIVE
        self.agent.crash("before_started_fact")
        fact = RunStarted(
            seq=0,
            t=self.agent.host.wall(),
            pid=1,
            boot_id=self.agent.host.machine.boot_id,
            warm=True,
        )
        run.spool.facts.append(fact)
        self.agent.note("started", run.job[-2:], run.attempt)
        self._watch(run)

    def _watch(self, run: SimRun) -> None:
        self.agent.spawn(self._see_out(run))

    def _see_out(self, run: SimRun) -> Thread:
        """Stay with a run until its last fact is written."""
        while run.files.holds_locks:
            yield 1.0
        run.phase = Phase.GONE
        yield self.agent.engine.rng.uniform(0.01, 0.2)
        run.finish()
        self.agent.relay_soon()
        self.wake()

    def _collect(self, entry: ControlEntry) -> None:
        host = self.agent.host
        mine = [n for job, n in self.runs if job == entry.job]
        run = self._new(entry.job, max([*mine, entry.attempt]))
        run.phase = Phase.ENDED
        for number in mine:
            if number != run.attempt:
                del self.runs[entry.job, number]
                del host.attempts[entry.job, number]
        self.relay.remove(entry.job)
        host.own.pop(entry.job, None)
        run.spool.facts.append(RunCollected(seq=0, t=host.wall()))
        run.spool.done = False
        self.relay.add(run.spool)
        self.agent.note("collected", entry.job[-2:])

    def _send_again(self) -> None:
        now = self.agent.clock.boot()
        for job, entry in self.entries.items():
            mine = [n for j, n in self.runs if j == job]
            run = self.runs.get((job, max([entry.attempt, *mine])))
            if run is None or run.phase is not Phase.ENDED or not run.spool.done:
                continue
            if run.resend_at == NEVER:
                run.resend_at = now + RESEND_SECONDS
            elif now >= run.resend_at:
                run.resend_at = now + 10 * RESEND_SECONDS
                self.agent.note("facts again", job[-2:], run.attempt)
                self.relay.resend_facts(run.spool)
                self.agent.relay_soon()

    def send_all_again(self) -> None:
        """The stream of facts was made anew."""
        for run in self.runs.values():
            if run.phase is Phase.ENDED and run.spool.done and run.job in self.entries:
                self.relay.resend_facts(run.spool)

    def _sweep(self) -> None:
        for (job, number), run in list(self.runs.items()):
            known = run.spool.done and job not in self.entries and self.complete
            if known and run.spool.facts.has(RunCollected) and job not in self._busy:
                del self.runs[job, number]
                del self.agent.host.attempts[job, number]

    def reports(self) -> tuple[RunReport, ...]:
        """Return the runs for a heartbeat."""
        return tuple(
            RunReport(
                job=run.job,
                attempt=run.attempt,
                alive=run.phase in (Phase.ALIVE, Phase.GONE)
                or (run.phase is Phase.NEW and run.job in self._busy),
                exited=run.phase is Phase.ENDED,
            )
            for run in self.runs.values()
            if run.phase is not Phase.ENDED or run.job in self.entries or not run.spool.done
        )
