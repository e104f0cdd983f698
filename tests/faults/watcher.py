"""Looks at the process table and the hosts' files while faults happen: overlaps, and what attempts resume from."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from services.gpu_agent import checkpoint_store
from services.gpu_agent.processes import ProcessRef, RunProcesses

TICK_SECONDS = 0.05
Key = tuple[str, int]


class Watcher:
    """Samples in a thread from `start` to `stop`; what it found stays readable."""

    def __init__(self, home: Path) -> None:
        self._jobs = home / "agents" / "local" / "jobs"
        self._over: set[Key] = set()
        self._resumes: dict[Key, str | None] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher")
        self.live: dict[Key, RunProcesses] = {}
        """Attempts with a live shim or trainer, as of the last sample."""
        self.overlaps: set[tuple[str, tuple[int, ...]]] = set()
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(30)
        if self.failure is not None:
            raise self.failure

    def resume_problem(self, job: str, attempt: int) -> str | None:
        """Return what was wrong with the checkpoint that the attempt began with."""
        return self._resumes.get((job, attempt))

    def _run(self) -> None:
        try:
            while not self._stop.wait(TICK_SECONDS):
                self.sample()
        except BaseException as error:  # noqa: BLE001 - told to the test that stops it
            self.failure = error

    def sample(self) -> None:
        """Look once at every attempt that is not known to be over."""
        alive: dict[Key, RunProcesses] = {}
        for folder in self._jobs.glob("*/attempts/*"):
            key = (folder.parent.parent.name, int(folder.name))
            if key in self._over:
                continue
            self._note_resume(key, folder)
            processes = RunProcesses.read(folder / "pid.json")
            if processes is None:
                continue
            if _is_alive(processes.shim) or _is_alive(processes.trainer):
                alive[key] = processes
            elif processes.trainer is not None:
                self._over.add(key)
        self._note_overlaps(alive)
        self.live = alive

    def _note_resume(self, key: Key, folder: Path) -> None:
        """Verify once, as soon as the attempt's spec is there, what it goes on from."""
        if key in self._resumes or not (folder / "spec.json").exists():
            return
        named = json.loads((folder / "spec.json").read_text()).get("resume_from")
        self._resumes[key] = None if named is None else checkpoint_store.verify(Path(named))

    def _note_overlaps(self, alive: dict[Key, RunProcesses]) -> None:
        by_job: dict[str, list[int]] = {}
        for (job, attempt), processes in alive.items():
            if _is_alive(processes.trainer):
                by_job.setdefault(job, []).append(attempt)
        for job, attempts in by_job.items():
            # asked again: the older may have ended just before the newer one began
            still = [n for n in attempts if _is_alive(alive[job, n].trainer)]
            if len(still) > 1:
                self.overlaps.add((job, tuple(sorted(still))))


def _is_alive(process: ProcessRef | None) -> bool:
    return process is not None and process.is_alive()
