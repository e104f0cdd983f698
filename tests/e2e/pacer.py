"""Slows real trainers down to a step now and then, so that training goes on all through what a test does meanwhile."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from services.gpu_agent.processes import ProcessRef, RunProcesses

TICK_SECONDS = 0.005
SCAN_SECONDS = 0.05


class Pacer:
    """Works in a thread between `start` and `stop`; a run that is asked to stop, or has a step to catch up to, runs free.

    After its first step a run is stopped, and again each time that it has written something, for `every` seconds and
    `longer` more each time: on a fast machine as on a slow one it is at work, and does not come to its end.
    """

    def __init__(self, jobs_dirs: Sequence[Path], every: float = 0.2, longer: float = 0.02) -> None:
        self.jobs_dirs = list(jobs_dirs)
        self.every = every
        self.longer = longer
        self.free: set[str] = set()
        """Jobs that run at full speed from now on."""
        self.held: set[str] = set()
        """Jobs that stand still, once they have made their first step, for as long as they are here."""
        self._over: set[Path] = set()
        self._begun: set[Path] = set()
        """Attempts that have ended, and those that have made their first step."""
        self._written: dict[Path, int] = {}
        """Bytes that a run had written when it was let go on."""
        self._stopped_until: dict[Path, float] = {}
        self._stops: Counter[Path] = Counter()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pacer")
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(60)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        runs: dict[Path, ProcessRef] = {}
        scan_at = 0.0
        try:
            while not self._stopping.wait(TICK_SECONDS):
                now = time.monotonic()
                if now >= scan_at:
                    runs, scan_at = self._scan(), now + SCAN_SECONDS
                for folder, trainer in runs.items():
                    self._pace(folder, trainer, now)
        except BaseException as error:  # noqa: BLE001 - told to the test that stops it
            self.failure = error
        finally:
            for trainer in self._scan().values():
                _send(trainer, signal.SIGCONT)

    def _scan(self) -> dict[Path, ProcessRef]:
        found = {}
        for jobs in self.jobs_dirs:
            for folder in jobs.glob("*/attempts/*"):
                if folder in self._over:
                    continue
                if (folder / "exit.json").exists():
                    self._over.add(folder)
                    continue
                processes = RunProcesses.read(folder / "pid.json")
                if processes is not None and processes.trainer is not None:
                    found[folder] = processes.trainer
        return found

    def _pace(self, folder: Path, trainer: ProcessRef, now: float) -> None:
        until = self._stopped_until.get(folder)
        if until is not None:
            is_due = now >= until and folder.parent.parent.name not in self.held
            if is_due or not self._is_slow(folder):
                self._written[folder] = _size(folder)
                del self._stopped_until[folder]
                _send(trainer, signal.SIGCONT)
        elif self._is_slow(folder) and _size(folder) > self._written.get(folder, 0):
            self._stopped_until[folder] = now + self.every + self._stops[folder] * self.longer
            self._stops[folder] += 1
            _send(trainer, signal.SIGSTOP)

    def _is_slow(self, folder: Path) -> bool:
        """Tell whether the run has made its first step and nobody waits for it."""
        if folder.parent.parent.name in self.free or (folder / "stop.json").exists():
            return False
        if folder not in self._begun:
            with contextlib.suppress(OSError):
                if b'"metric"' in (folder / "events.jsonl").read_bytes()[:65536]:
                    self._begun.add(folder)
        return folder in self._begun


def _size(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return (folder / "events.jsonl").stat().st_size
    return 0


def _send(process: ProcessRef, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        process.send(number)
