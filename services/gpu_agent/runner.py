"""Brings what runs here in line with what the scheduler wants, and adopts what an earlier agent left running."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from services.gpu_agent.collecting import remove_files, remove_job
from services.gpu_agent.core.exits import Ending
from services.gpu_agent.core.reconcile import (
    Action,
    Collect,
    EndUnstarted,
    Phase,
    Refuse,
    Start,
    Stop,
    reconcile,
)
from services.gpu_agent.facts import RunCollected
from services.gpu_agent.layout import HostFiles
from services.gpu_agent.relay import Relay
from services.gpu_agent.run import Begun, Run
from services.gpu_agent.spool import AttemptSpool
from services.gpu_agent.starting import Starter, refuse
from shared.clock import Clock
from shared.events.calls import ControlEntry, RunReport
from shared.jobs.reasons import REASONS, Reason
from shared.log import logger
from shared.runs import write_atomic_json

STALL_SECONDS = 5.0
RESEND_SECONDS = 60.0
RETRY_SECONDS = 5.0
TELL_SECONDS = 0.5
"""How often an attempt whose start is not told yet is looked at."""
_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}\Z")


class Runner:
    """Owns all runs of this host. `entries` and `complete` are set from outside, then `wake` is called."""

    def __init__(self, host: HostFiles, relay: Relay, starter: Starter, clock: Clock) -> None:
        """Do no I/O."""
        self._host = host
        self._relay = relay
        self._starter = starter
        self._clock = clock
        self.runs: dict[tuple[str, int], Run] = {}
        self.entries: dict[str, ControlEntry] = {}
        self.complete = False
        """`entries` are all there are for the present epoch: a run without one is not wanted."""
        self.drained = False
        self.may_start: Callable[[ControlEntry], bool] = lambda _: True
        """Does the lease that this attempt was given under still run? Set from outside."""
        self.unclean = False
        """Something could not be killed: nothing new starts until the agent is started again."""
        self.closing = False
        self._changed = asyncio.Event()
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    # adoption

    def adopt(self) -> None:
        """Find every attempt on disk; what runs is watched from now on, what ended meanwhile is judged."""
        folders = (
            sorted(self._host.work_dir.glob("*/attempts/*")) if self._host.work_dir.exists() else []
        )
        for folder in folders:
            if not folder.name.isdigit():
                continue
            try:
                run = self._open(folder.parents[1].name, int(folder.name))
            except (OSError, ValueError) as error:
                logger("runner").error("attempt_unreadable", path=str(folder), error=str(error))
                continue
            run.phase = run.look()
            if run.phase in (Phase.ALIVE, Phase.GONE):
                _told(run)
            if not run.spool.done:
                self._relay.add(run.spool)
            if run.phase in (Phase.ALIVE, Phase.GONE):
                logger("runner").info("adopted", job=run.job, attempt=run.attempt, phase=run.phase)
                self._watch(run)

    def _open(self, job: str, attempt: int) -> Run:
        files = self._host.job(job)
        spool = AttemptSpool(files, attempt, now=self._clock.boot())
        run = Run(files.attempt(attempt), files, spool, self._clock)
        self.runs[job, attempt] = run
        return run

    # reconciling

    def wake(self) -> None:
        """Reconcile soon."""
        self._changed.set()

    async def run(self) -> None:
        """Reconcile on each change and every few seconds, for ever."""
        while True:
            self.reconcile_once()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS):
                    await self._changed.wait()
            self._changed.clear()
            self._starter.reap()

    def reconcile_once(self) -> None:
        """Begin what is to be done now; one thing at a time for each job."""
        if self.closing:
            return
        entries = {j: e for j, e in self.entries.items() if _JOB.match(j) and e.job == j}
        views = [run.view for run in self.runs.values()]
        accepting = not (self.drained or self.unclean)
        for action in reconcile(entries, views, complete=self.complete, accepting=accepting):
            if isinstance(action, Start) and not self.may_start(action.entry):
                continue
            job = action.entry.job if isinstance(action, Start | Refuse | Collect) else action.job
            if job not in self._busy:
                self._begin(job, self._do(action))
            elif isinstance(action, Stop) and action.mode == "cancel":
                self.runs[job, action.attempt].hasten(action.mode, action.grace)
        self._send_again()
        self._sweep()

    def _begin(self, job: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"job-{job}")
        self._busy[job] = task
        task.add_done_callback(lambda t: self._ended(job, t))

    def _ended(self, job: str, task: asyncio.Task[None]) -> None:
        del self._busy[job]
        if not task.cancelled() and task.exception() is not None:
            # the disk is full, most likely: it is tried again with the next round
            logger("runner").error("action_failed", job=job, error=repr(task.exception()))
            return
        self.wake()

    async def _do(self, action: Action) -> None:
        try:
            await self._act(action)
        except Begun:
            entry = action.entry if isinstance(action, Start | Refuse | Collect) else action
            run = self.runs[entry.job, entry.attempt]
            logger("runner").warning("begun_late", job=run.job, attempt=run.attempt)
            run.phase = Phase.ALIVE
            self._watch(run)
        self._relay.wake()

    async def _act(self, action: Action) -> None:
        match action:
            case Start(entry):
                await self._start(entry)
            case Stop(job, attempt, mode, grace):
                await self.runs[job, attempt].stop(mode, grace)
            case EndUnstarted(job, attempt, mode):
                self._new(job, attempt).end(Ending(outcome="stopped", stop_cause=mode))
            case Refuse(entry):
                text = REASONS[Reason.HOST_DRAINED]
                run = self._new(entry.job, entry.attempt)
                refuse(run, Reason.HOST_DRAINED, text.en, text.zh)
            case Collect(entry):
                await self._collect(entry)

    async def _start(self, entry: ControlEntry) -> None:
        run = self._new(entry.job, entry.attempt, entry)

        def still_wanted() -> bool:
            now = self.entries.get(entry.job)
            return (
                not self.closing
                and now is not None
                and now.attempt == entry.attempt
                and now.desired == "run"
                and self.may_start(entry)
            )

        await self._starter.start(run, entry, still_wanted)
        if run.phase is Phase.ALIVE:
            _told(run)
            self._watch(run)  # also where the disk is too full to tell: its end must be seen

    def _new(self, job: str, attempt: int, entry: ControlEntry | None = None) -> Run:
        """Return the run, its folder made if it is new; where its log begins is noted once."""
        known = self.runs.get((job, attempt))
        if known is not None:
            return known
        files = self._host.job(job)
        folder = files.attempt(attempt)
        folder.root.mkdir(parents=True, exist_ok=True)
        if not folder.entry.exists():
            document = {
                "log_offset": _log_end(files.log),
                "entry": entry and entry.model_dump(mode="json"),
            }
            write_atomic_json(folder.entry, document)
        run = self._open(job, attempt)
        self._relay.add(run.spool)
        return run

    # watching

    def _watch(self, run: Run) -> None:
        task = asyncio.create_task(self._see_out(run), name=f"watch-{run.job}-{run.attempt}")
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def _see_out(self, run: Run) -> None:
        """Stay with a run until its last fact is written."""
        while not (_told(run) or run.unkillable or await run.wait_gone(TELL_SECONDS)):
            pass
        await run.wait_gone()
        run.phase = Phase.GONE
        fact = None
        while fact is None:
            try:
                fact = await run.finish()
            except OSError as error:
                logger("runner").error("exit_not_written", job=run.job, error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
        if fact.leftovers:
            self.unclean = True
            logger("runner").error("leftovers", job=run.job, count=fact.leftovers)
        self._relay.wake()
        self.wake()

    async def watch_stalls(self) -> None:
        """Look for runs that make no progress, for ever."""
        while True:
            await asyncio.sleep(STALL_SECONDS)
            for run in list(self.runs.values()):
                if run.phase is Phase.ALIVE and run.job not in self._busy and run.is_stalled():
                    self._begin(run.job, run.stop_stalled())

    # the rest

    async def _collect(self, entry: ControlEntry) -> None:
        mine = [n for job, n in self.runs if job == entry.job]
        run = self._new(entry.job, max([*mine, entry.attempt]))
        run.phase = Phase.ENDED
        for number in mine:
            if number != run.attempt:
                del self.runs[entry.job, number]
        self._relay.remove(entry.job)
        await asyncio.to_thread(remove_files, self._host, entry.job, run.attempt)
        run.spool.facts.append(RunCollected(seq=0, t=time.time()))
        run.spool.done = False
        self._relay.add(run.spool)
        logger("runner").info("collected", job=entry.job)

    def _send_again(self) -> None:
        """A wanted attempt that ended long ago: whoever should fold its last fact did not get it."""
        now = self._clock.boot()
        for job, entry in self.entries.items():
            mine = [n for j, n in self.runs if j == job]
            run = self.runs.get((job, max([entry.attempt, *mine])))
            if run is None or run.phase is not Phase.ENDED or not run.spool.done:
                continue
            if run.resend_at == float("inf"):
                run.resend_at = now + RESEND_SECONDS
            elif now >= run.resend_at:
                run.resend_at = now + 10 * RESEND_SECONDS
                logger("runner").info("facts_again", job=job, attempt=run.attempt)
                self._relay.resend_facts(run.spool)

    def send_all_again(self) -> None:
        """The stream of facts was made anew: what is still wanted is told again at once."""
        for run in self.runs.values():
            if run.phase is Phase.ENDED and run.spool.done and run.job in self.entries:
                self._relay.resend_facts(run.spool)

    def _sweep(self) -> None:
        """Remove the last traces of jobs that were collected, once everyone knows."""
        for (job, number), run in list(self.runs.items()):
            known = run.spool.done and job not in self.entries and self.complete
            if known and run.spool.facts.has(RunCollected) and job not in self._busy:
                del self.runs[job, number]
                remove_job(self._host, job)

    def reports(self, everything: bool = False) -> tuple[RunReport, ...]:
        """Return the runs for a heartbeat: those that live, and those that the scheduler still asks for, or `everything`.

        One that is being started (its dataset is being read, perhaps) or whose end is being told counts as alive.
        """
        return tuple(
            RunReport(
                job=run.job,
                attempt=run.attempt,
                alive=run.phase in (Phase.ALIVE, Phase.GONE)
                or (run.phase is Phase.NEW and run.job in self._busy),
                exited=run.phase is Phase.ENDED,
            )
            for run in self.runs.values()
            if everything
            or run.phase is not Phase.ENDED
            or run.job in self.entries
            or not run.spool.done
        )

    @property
    def alive(self) -> list[Run]:
        """Return the runs that live."""
        return [run for run in self.runs.values() if run.phase is Phase.ALIVE]

    async def stop_all(self, mode: str = "drain", grace: float = 60.0) -> None:
        """End every run with a checkpoint and wait for their last facts."""
        self.closing = True
        await asyncio.gather(*self._busy.values(), return_exceptions=True)
        await asyncio.gather(*(run.stop(mode, grace) for run in self.alive))
        await asyncio.gather(*self._watchers, return_exceptions=True)

    async def close(self) -> None:
        """Stop watching; what runs goes on."""
        self.closing = True
        tasks = [*self._watchers, *self._busy.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _told(run: Run) -> bool:
    """Tell whether `started` is written. On a full disk it is tried again, at the latest before `exited`."""
    try:
        return run.tell_started()
    except OSError:
        return False


def _log_end(log: Path) -> int:
    """Return where a new attempt's part of the log begins, after a line break."""
    try:
        with log.open("ab+") as file:
            end = int(file.tell())
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")
                    end += 1
            return end
    except FileNotFoundError:
        return 0
