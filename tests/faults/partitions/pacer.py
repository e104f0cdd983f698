"""Slows real trainers down by stopping them most of the time, so that training goes on all through a cut and costs little."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from services.gpu_agent.processes import ProcessRef, RunProcesses

RUN_SECONDS, STOP_SECONDS = 0.02, 0.38
SCAN_EVERY = 2
"""Rounds after which it looks for new runs."""


class Pacer:
    """Works in a thread between `start` and `stop`; a run that is asked to stop, or has a step to catch up to, runs free."""

    def __init__(self, jobs_dirs: Sequence[Path]) -> None:
        self.jobs_dirs = list(jobs_dirs)
        self.free: set[str] = set()
        """Jobs that run at full speed from now on."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pacer")
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(10)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        paced: dict[Path, ProcessRef] = {}
        round_ = 0
        try:
            while not self._stopping.wait(RUN_SECONDS):
                if round_ % SCAN_EVERY == 0:
                    paced = self._scan()
                round_ += 1
                slowed = {f: p for f, p in paced.items() if self._is_slow(f)}
                _send(slowed, signal.SIGSTOP)
                self._stopping.wait(STOP_SECONDS)
                _send(paced, signal.SIGCONT)
        except BaseException as error:  # noqa: BLE001 - told to the test that stops it
            self.failure = error
        finally:
            _send(self._scan(), signal.SIGCONT)

    def _scan(self) -> dict[Path, ProcessRef]:
        found = {}
        for jobs in self.jobs_dirs:
            for folder in jobs.glob("*/attempts/*"):
                if (folder / "exit.json").exists():
                    continue
                processes = RunProcesses.read(folder / "pid.json")
                if processes is not None and processes.trainer is not None:
                    found[folder] = processes.trainer
        return found

    def _is_slow(self, folder: Path) -> bool:
        """Tell whether the run has made its first step and nobody waits for it."""
        if folder.parent.parent.name in self.free or (folder / "stop.json").exists():
            return False
        with contextlib.suppress(OSError):
            return b'"metric"' in (folder / "events.jsonl").read_bytes()[:65536]
        return False


def _send(processes: dict[Path, ProcessRef], number: signal.Signals) -> None:
    for process in processes.values():
        with contextlib.suppress(OSError):
            process.send(number)
