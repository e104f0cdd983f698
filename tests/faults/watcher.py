"""Looks at the process table and the hosts' files while faults happen: who lives when, and what attempts resume from."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from services.gpu_agent import checkpoint_store
from services.gpu_agent.processes import ProcessRef, RunProcesses
from tests.faults.checker import Overlap

TICK_SECONDS = 0.05
Key = tuple[str, int]
"""Job and attempt."""


def jobs_folder(home: Path) -> Path:
    """Return where the agent of `home` keeps its jobs."""
    return home / "agents" / "local" / "jobs"


class Watcher:
    """Samples in a thread from `start` to `stop`; what it found stays readable. `homes`: one for each host."""

    def __init__(self, homes: Sequence[Path]) -> None:
        self._homes = homes
        self._over: set[Key] = set()
        self._resumes: dict[Key, str | None] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher")
        self.live: dict[Key, RunProcesses] = {}
        """Attempts with a live shim or trainer, as of the last sample."""
        self.last_alive: dict[Key, float] = {}
        """Unix time at which a process of the attempt was seen for the last time."""
        self._together: dict[tuple[str, tuple[int, ...]], tuple[float, float]] = {}
        """Since when and until when trainers of these attempts of a job ran at the same moment."""
        self._where: dict[Key, Path] = {}
        self.starved = 0.0
        """Seconds that a sample came late at most: so late may every process of this machine have been."""
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(30)
        if self.failure is not None:
            raise self.failure

    @property
    def overlaps(self) -> tuple[Overlap, ...]:
        """Return which attempts of a job ran at the same moment, and for how long."""
        found = sorted(self._together.items())
        return tuple(
            Overlap(job, ns, end - begin, len({self._where[job, n] for n in ns}) > 1)
            for (job, ns), (begin, end) in found
        )

    def resume_problem(self, job: str, attempt: int) -> str | None:
        """Return what was wrong with the checkpoint that the attempt began with."""
        return self._resumes.get((job, attempt))

    def host_of(self, job: str, attempt: int) -> Path | None:
        """Return the home of the host on which the attempt was seen alive."""
        return self._where.get((job, attempt))

    def _run(self) -> None:
        try:
            due = time.monotonic() + TICK_SECONDS
            while not self._stop.wait(TICK_SECONDS):
                self.starved = max(self.starved, time.monotonic() - due)
                self.sample()
                due = time.monotonic() + TICK_SECONDS
        except BaseException as error:  # noqa: BLE001 - told to the test that stops it
            self.failure = error

    def sample(self) -> None:
        """Look once at every attempt that is not known to be over."""
        alive: dict[Key, RunProcesses] = {}
        for home, folder in self._folders():
            key = (folder.parent.parent.name, int(folder.name))
            if key in self._over:
                continue
            self._note_resume(key, folder)
            processes = RunProcesses.read(folder / "pid.json")
            if processes is None:
                continue
            looked = time.time()
            if is_alive(processes.shim) or is_alive(processes.trainer):
                alive[key], self._where[key] = processes, home
                self.last_alive[key] = looked
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

    def _folders(self) -> list[tuple[Path, Path]]:
        return [(home, f) for home in self._homes for f in jobs_folder(home).glob("*/attempts/*")]

    def _note_overlaps(self, alive: dict[Key, RunProcesses]) -> None:
        by_job: dict[str, list[int]] = {}
        for job, attempt in alive:
            by_job.setdefault(job, []).append(attempt)
        for job, attempts in by_job.items():
            if len(attempts) < 2:
                continue
            # a trainer that is frozen still holds its own host's lock, but elsewhere it does nothing
            across = len({self._where[job, n] for n in attempts}) > 1
            is_there = _is_running if across else is_alive
            still = tuple(sorted(n for n in attempts if is_there(alive[job, n].trainer)))
            if len(still) > 1:
                now = time.monotonic()
                begin, _ = self._together.get((job, still), (now, now))
                self._together[job, still] = (begin, now)


def is_alive(process: ProcessRef | None) -> bool:
    return process is not None and process.is_alive()


def _is_running(process: ProcessRef | None) -> bool:
    """Tell whether it is there and nobody has stopped it: what is frozen does nothing."""
    if process is None or not process.is_alive():
        return False
    try:
        state = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in (b"T", b"t", b"Z", b"X")
