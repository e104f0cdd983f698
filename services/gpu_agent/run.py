"""One attempt on this host from its first fact to its last: watched, stopped when asked, and proven gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from services.gpu_agent import checkpoint_store, shim
from services.gpu_agent.core.exits import Ending, Evidence, ExitRecord, classify, with_shortage
from services.gpu_agent.core.numbering import Position
from services.gpu_agent.core.reconcile import Phase, RunView
from services.gpu_agent.core.stall import is_stalled
from services.gpu_agent.facts import RunCollected, RunExited, RunStarted
from services.gpu_agent.layout import AttemptFiles, JobFiles
from services.gpu_agent.processes import (
    ProcessRef,
    RunProcesses,
    family,
    is_locked,
    lock_files,
    signal_all,
)
from services.gpu_agent.spool import AttemptSpool
from shared.clock import Clock
from shared.disk.reserve import give_back
from shared.disk.volumes import volume_of
from shared.log import logger
from shared.runs import RunResult, RunSpec, write_atomic_json

LOCK_SECONDS = 1.0
"""How often a lock is looked at; the end of a process is noticed at once."""
CLEAR_SECONDS = 30.0
"""How long a shim may take to clear up after its trainer."""
TERM_SECONDS = 2.0
DUMP_SECONDS = 2.0
KILL_SECONDS = 10.0
_TAIL_BYTES = 64 * 1024


class Begun(RuntimeError):
    """A shim has begun the attempt that was to be closed as never started."""


@dataclass
class Run:
    """See the module; made by the runner."""

    files: AttemptFiles
    job_files: JobFiles
    spool: AttemptSpool
    clock: Clock
    phase: Phase = Phase.NEW
    stopping: str | None = None
    unkillable: bool = False
    """SIGKILL did not end it: it is given up, and the host takes no new work."""
    stop_by: float = float("inf")
    """Unix time at which the grace of a stop that is under way ends."""
    trainer_gone_at: float | None = None
    resend_at: float = field(default=float("inf"))
    """Boot time at which the facts of an ended attempt are sent again if it is still wanted."""

    @property
    def job(self) -> str:
        """The job's id."""
        return self.spool.job

    @property
    def attempt(self) -> int:
        """The attempt's number."""
        return self.spool.attempt

    @property
    def view(self) -> RunView:
        """What the reconciler sees."""
        collected = self.spool.facts.has(RunCollected)
        return RunView(self.job, self.attempt, self.phase, self.stopping, collected)

    # the start

    def tell_started(self) -> bool:
        """Write `started` once there is a trainer; tell whether it is written. Raises OSError.

        An agent that dies between a start and this fact leaves it to the next one: users would read PENDING to the end.
        """
        facts = self.spool.facts
        processes = RunProcesses.read(self.files.pid)
        if facts.has(RunStarted) or processes is None or processes.trainer is None:
            return facts.has(RunStarted)
        facts.append(
            RunStarted(
                seq=0,
                t=self.files.pid.stat().st_mtime,
                pid=processes.trainer.pid,
                boot_id=processes.boot_id,
                warm=processes.warm,
                resume_step=_resume_step(self.files.spec),
            )
        )
        logger("run").info("started", job=self.job, attempt=self.attempt, pid=processes.trainer.pid)
        return True

    # watching

    def look(self) -> Phase:
        """Return the phase as the disk has it; for a run that nobody watches yet."""
        if self.spool.facts.is_closed:
            return Phase.ENDED
        if not self.files.pid.exists():
            return Phase.NEW
        return Phase.ALIVE if self.is_alive() else Phase.GONE

    def is_alive(self) -> bool:
        """Tell whether something of this attempt holds the job's lock, or a rank its own."""
        if not any(is_locked(path) for path in lock_files(self.job_files.lock)):
            return False
        with contextlib.suppress(OSError, ValueError):
            words = self.job_files.lock.read_text().split()
            return len(words) < 2 or int(words[1]) == self.attempt
        return True

    async def wait_gone(self, timeout: float | None = None) -> bool:
        """Wait until nothing holds the lock; tell whether that came before `timeout` seconds were over."""
        deadline = None if timeout is None else self.clock.boot() + timeout
        while self.is_alive() and not self.unkillable:
            left = (
                LOCK_SECONDS
                if deadline is None
                else min(LOCK_SECONDS, deadline - self.clock.boot())
            )
            if left <= 0:
                return False
            await self._wait_for_an_end(left)
            await self._clear_when_orphaned()
        return not self.is_alive()

    async def _wait_for_an_end(self, timeout: float) -> None:
        """Sleep until one of the two processes ends, or `timeout` seconds."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        processes = RunProcesses.read(self.files.pid)
        refs = [] if processes is None else [processes.shim, processes.trainer]
        descriptors = [d for ref in refs if ref is not None and (d := ref.open()) is not None]
        for descriptor in descriptors:
            loop.add_reader(descriptor, ended.set)
        try:
            if len(descriptors) < len(refs):
                timeout = min(timeout, 0.05)
            async with asyncio.timeout(timeout):
                await ended.wait()
        except TimeoutError:
            pass
        finally:
            for descriptor in descriptors:
                loop.remove_reader(descriptor)
                os.close(descriptor)

    async def _clear_when_orphaned(self) -> None:
        """The trainer is dead and its shim too, or the shim hangs: end what still holds the lock."""
        processes = RunProcesses.read(self.files.pid)
        if processes is None or processes.trainer is None or processes.trainer.is_alive():
            return
        now = self.clock.boot()
        self.trainer_gone_at = self.trainer_gone_at or now
        if processes.shim.is_alive() and now - self.trainer_gone_at < CLEAR_SECONDS:
            return
        if self.is_alive():
            logger("run").warning("orphans", job=self.job, attempt=self.attempt)
            await self._end_family(TERM_SECONDS)

    # stopping

    async def stop(self, mode: str, grace: float) -> None:
        """Ask for the end; SIGTERM to the trainer, after `grace` seconds to the session, then SIGKILL to all."""
        self.stopping = mode
        self.stop_by = self._note_stop(mode, grace)
        logger("run").info("stopping", job=self.job, attempt=self.attempt, mode=mode, grace=grace)
        processes = RunProcesses.read(self.files.pid)
        if processes is not None and processes.trainer is not None:
            processes.trainer.send(signal.SIGTERM)
        while not self.unkillable and (left := self.stop_by - time.time()) > 0:
            if await self.wait_gone(min(left, LOCK_SECONDS)):
                return
        if await self.wait_gone(0.0):
            return
        logger("run").warning("grace_over", job=self.job, attempt=self.attempt)
        await self._end_family(TERM_SECONDS)

    def hasten(self, mode: str, grace: float) -> None:
        """Turn a stop that is under way into another: `mode` from now on, and at most `grace` seconds more.

        It does nothing before `stop` has begun. The trainer was sent its signal already and reads the mode at its end.
        """
        if self.stop_by == float("inf"):
            return
        self.stopping = mode
        self.stop_by = min(self.stop_by, time.time() + grace)
        logger("run").info("hastened", job=self.job, attempt=self.attempt, mode=mode, grace=grace)
        try:
            write_atomic_json(self.files.stop, {"mode": mode, "deadline": self.stop_by})
        except OSError as error:
            # the scheduler knows what it asked for; the file is for the trainer and for the next agent
            logger("run").error("stop_not_noted", job=self.job, error=str(error))

    def _note_stop(self, mode: str, grace: float) -> float:
        """Write `stop.json`; a stop that an earlier agent began keeps its deadline."""
        deadline = time.time() + grace
        known = shim.read_json(str(self.files.stop))
        if known is not None and known.get("mode") == mode:
            with contextlib.suppress(TypeError, ValueError):
                deadline = min(deadline, float(known["deadline"]))
        write_atomic_json(self.files.stop, {"mode": mode, "deadline": deadline})
        return deadline

    async def _end_family(self, patience: float) -> None:
        """SIGTERM, then SIGKILL to all of the run but its shim, then to the shim."""
        processes = RunProcesses.read(self.files.pid)
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, KILL_SECONDS)):
            signal_all(await asyncio.to_thread(family, processes, self.job_files.lock), number)
            if await self._released(seconds):
                return
        if processes is not None:
            signal_all([processes.shim], signal.SIGKILL)
        self.unkillable = not await self._released(TERM_SECONDS)

    async def _released(self, seconds: float) -> bool:
        for _ in range(int(seconds / 0.05)):
            if not self.is_alive():
                return True
            await asyncio.sleep(0.05)
        return not self.is_alive()

    def is_stalled(self) -> bool:
        """Tell whether it has made no progress for too long, and nobody has asked it to stop."""
        if self.stopping is not None:
            return False
        known = self.files.verdict.exists()  # an earlier agent began to stop it
        return known or is_stalled(self.spool.progress, self.clock.boot())

    async def stop_stalled(self) -> None:
        """Let it dump its stacks into the log, then stop it as failed."""
        logger("run").warning("stalled", job=self.job, attempt=self.attempt)
        self.stopping = "requeue"
        write_atomic_json(self.files.verdict, {"reason": "stalled"})
        processes = RunProcesses.read(self.files.pid)
        if processes is not None and processes.trainer is not None:
            processes.trainer.send(signal.SIGUSR1)
        await asyncio.sleep(
            DUMP_SECONDS
        )  # the dump is written by a signal handler; nothing tells when it is done
        await self.stop("requeue", 60.0)

    # the end

    async def finish(self) -> RunExited:
        """Prove that nothing is left, find out how it ended, and write the last fact. Raises OSError on a full disk."""
        self.tell_started()
        left = await self._leftovers()
        ending = await asyncio.to_thread(self._judge)
        self.spool.note_all_checkpoints()
        ends = await asyncio.to_thread(self.spool.find_ends)
        return self.end(ending, ends, leftovers=len(left))

    def end(
        self, ending: Ending, ends: dict[str, Position] | None = None, *, leftovers: int = 0
    ) -> RunExited:
        """Write `exited`; without `ends` for a run that never started. Raises Begun where it did."""
        if ends is None:
            self.bar()
        ends = self.spool.find_ends() if ends is None else ends
        last_seq = {kind: p.seq for kind, p in ends.items()}
        last_seq["run"] = self.spool.facts.last_seq + 1
        fact = RunExited(
            seq=0,
            t=time.time(),
            outcome=ending.outcome,
            reason=ending.reason,
            message_en=ending.message_en,
            message_zh=ending.message_zh,
            shortage=ending.shortage,
            stop_cause=ending.stop_cause,
            exit_code=ending.exit_code,
            signal=ending.signal,
            step=ending.step,
            total_steps=ending.total_steps,
            final_metrics=ending.final_metrics,
            last_seq=last_seq,
            leftovers=leftovers,
        )
        written = self.spool.facts.append(fact, ends=ends)
        self.spool.close(ends)
        give_back(*self.files.last_words)
        self.phase = Phase.ENDED
        logger("run").info(
            "exited",
            job=self.job,
            attempt=self.attempt,
            outcome=ending.outcome,
            reason=ending.reason,
        )
        assert isinstance(written, RunExited)
        return written

    def bar(self) -> None:
        """Make sure that no shim that is late begins this attempt. Raises Begun where one has."""
        if not shim.claim(str(self.files.root), "agent"):
            raise Begun

    async def _leftovers(self) -> set[ProcessRef]:
        """Return processes of this run that nothing could end; usually none."""
        processes = RunProcesses.read(self.files.pid)
        left = await asyncio.to_thread(family, processes, self.job_files.lock)
        if left:
            await self._end_family(TERM_SECONDS)
            deadline = self.clock.boot() + KILL_SECONDS
            while left and self.clock.boot() < deadline:
                signal_all(left, signal.SIGKILL)
                await asyncio.sleep(0.1)
                left = await asyncio.to_thread(family, processes, self.job_files.lock)
        return left

    def _judge(self) -> Ending:
        processes = RunProcesses.read(self.files.pid)
        stop = shim.read_json(str(self.files.stop)) or {}
        verdict = shim.read_json(str(self.files.verdict)) or {}
        ending = classify(
            Evidence(
                result=_result(self.files.result),
                exit=_exit(self.files.exit),
                stop_mode=stop.get("mode"),
                stalled=verdict.get("reason") == "stalled",
                rebooted=processes is not None and processes.boot_id != shim.boot_id(),
                log_tail=_tail(self.job_files.log, self.spool.log_start),
            )
        )
        volume = volume_of(self.files.root)
        return with_shortage(ending, (volume,) if volume else ())


def _resume_step(spec: Path) -> int | None:
    """Return the step of the checkpoint that an attempt goes on from; None for one from the start."""
    try:
        found = RunSpec.model_validate_json(spec.read_bytes()).resume_from
    except (OSError, ValueError):
        return None
    return None if found is None else checkpoint_store.step_in(found.name)


def _result(path: Path) -> RunResult | None:
    try:
        return RunResult.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def _exit(path: Path) -> ExitRecord | None:
    try:
        return ExitRecord.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return None


def _tail(path: Path, start: int) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
