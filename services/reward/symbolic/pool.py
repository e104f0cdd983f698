"""Warm symbolic processes: a question that takes too long costs its own process and nobody else's time."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final

import psutil

from services.reward.core.answers import Question
from services.reward.core.compare import Outcome
from services.reward.symbolic import worker

RECYCLE_AFTER: Final = 1000
RECYCLE_MIB: Final = 512
SPAWN_SECONDS: Final = 30.0
_BUSY_SHARE: Final = 0.25
"""A process that used less of its time than this was starved, not stuck: that says nothing about the answer."""


class Unverified(Exception):
    """No verdict: the verifier died twice, or was starved of CPU. `timeout` tells which."""

    def __init__(self, *, timeout: bool) -> None:
        super().__init__("timeout" if timeout else "crashed")
        self.timeout = timeout


@dataclass(slots=True)
class _Process:
    process: BaseProcess
    pipe: Connection
    asked: int = 0


class _Stuck(Exception):
    def __init__(self, phase: str, *, starved: bool) -> None:
        super().__init__(phase)
        self.phase, self.starved = phase, starved


class _Died(Exception):
    def __init__(self, phase: str) -> None:
        super().__init__(phase)
        self.phase = phase


class SymbolicPool:
    """`size` processes, each behind a thread that waits for it; questions queue up to `bound`.

    The clock of a question starts when a process takes it up, never while it queues (verifiers, issue 831).
    """

    def __init__(self, size: int = 1, bound: int = 20_000) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["services.reward.symbolic.worker"])
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="symbolic")
        self._idle: list[_Process] = []
        self._live: set[int] = set()
        self._bound = bound
        self._closed = False
        self.waiting = 0

    async def ask(self, question: Question, seconds: float) -> Outcome:
        """Return EQUAL, DIFFERENT, GOLD_UNPARSEABLE or TOO_COMPLEX (stuck or dead because of the answer).

        Raises Unverified, and BufferError where the queue is full.
        """
        if self.waiting >= self._bound:
            raise BufferError
        self.waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._ask, question, seconds)
        finally:
            self.waiting -= 1

    async def warm(self) -> None:
        """Start one process before it is needed."""
        await self.ask(Question("x+1", "1+x"), SPAWN_SECONDS)

    def close(self) -> None:
        """End every process; questions that wait are given up."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._idle:
            process.process.kill()
        self._idle.clear()

    def _ask(self, question: Question, seconds: float) -> Outcome:
        phase = "gold"
        for _ in range(2):  # dying twice at one question is the question's doing
            try:
                return self._once(question, seconds)
            except _Stuck as stuck:
                if stuck.starved:
                    raise Unverified(timeout=True) from None
                if stuck.phase == "gold":
                    return Outcome.GOLD_UNPARSEABLE
                return Outcome.TOO_COMPLEX
            except _Died as died:
                phase = died.phase
        if phase == "gold":
            raise Unverified(timeout=False)
        return Outcome.TOO_COMPLEX

    def _once(self, question: Question, seconds: float) -> Outcome:
        try:
            process = self._take()
        except (EOFError, OSError):
            raise _Died("gold") from None
        used = _cpu(process.process.pid)
        phase = "gold"
        try:
            process.pipe.send((question.gold, question.answer))
            deadline = time.monotonic() + seconds
            while True:
                if not process.pipe.poll(max(0.0, deadline - time.monotonic())):
                    starved = _cpu(process.process.pid) - used < seconds * _BUSY_SHARE
                    raise _Stuck(phase, starved=starved)
                reply: worker.Reply = process.pipe.recv()
                if reply[0] == "phase":
                    phase = reply[1]
                    continue
                self._give_back(process, reply[2])
                if reply[1] is None:
                    return Outcome.GOLD_UNPARSEABLE
                return Outcome.EQUAL if reply[1] else Outcome.DIFFERENT
        except (EOFError, OSError):
            self._end(process)
            raise _Died(phase) from None
        except _Stuck:
            self._end(process)
            raise

    def _take(self) -> _Process:
        if self._idle:
            return self._idle.pop()
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=worker.serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        # its start is not the item's time: the first one loads the computer algebra, which takes a second or two
        if not ours.poll(SPAWN_SECONDS):
            process.kill()
            ours.close()
            raise _Died("gold")
        ours.recv()
        return _Process(process, ours)

    def _give_back(self, process: _Process, resident_mib: int) -> None:
        process.asked += 1
        if self._closed or process.asked >= RECYCLE_AFTER or resident_mib > RECYCLE_MIB:
            self._end(process)
        else:
            self._idle.append(process)

    def _end(self, process: _Process) -> None:
        process.process.kill()
        process.pipe.close()
        process.process.join(5)


def _cpu(pid: int | None) -> float:
    """Return the CPU seconds that a process has used; 0 where it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
