"""The three proofs: random kills, a wiped broker, kills during saves; the suite runs short ones, `make bench-faults` long ones."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from tests.e2e.stack import Stack, until
from tests.faults.checker import Observation, Violation, check
from tests.faults.killer import Killer
from tests.faults.observing import leftovers, observe, processes_of
from tests.faults.watcher import Watcher
from tests.faults.workload import Workload

SLOTS = "3"


@dataclass
class Report:
    """What a proof has done and found."""

    name: str
    seed: int
    violations: list[Violation]
    faults: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    attempts: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        dealt = f"seed {self.seed}, {sum(self.faults.values())} faults"
        found = f"{self.jobs} jobs, {self.attempts} attempts, {len(self.violations)} violations"
        lines = [
            f"{self.name}: {dealt}, {found}, {self.seconds:.0f} s",
            "  " + ", ".join(f"{k} {n}" for k, n in sorted(self.faults.items())),
        ]
        return "\n".join([*lines, *(f"  {v.rule} [{v.where}]: {v.seen}" for v in self.violations)])


class Scene:
    """A stack with a watcher and a workload; `finish` stops all of it and returns what was seen."""

    def __init__(self, home: Path, model: Path, seed: int, **env: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.stack = Stack(home, TRAINYARD_AGENT_SLOTS=SLOTS, **env)
        self.watcher = Watcher(home)
        self.workload = Workload(self.stack, model, random.Random(seed))
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        try:
            self.stack.start()
        except BaseException:
            self.__exit__()
            raise
        self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop what was started, also when the proof broke off."""
        try:
            self.watcher.stop()
        finally:
            if self.stack.process is not None and self.stack.process.poll() is None:
                self.stack.stop()
            for pid in processes_of(self.stack.home):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def finish(self, name: str, seed: int, faults: Counter[str], settle: float) -> Report:
        """Wait for the jobs, judge everything, stop the stack and look for what it left."""
        self.workload.settle(settle)
        seen = observe(self.stack, self.workload, self.watcher)
        self.stack.stop()
        seen = replace(seen, orphans=(*seen.orphans, *leftovers(self.stack.home, 20)))
        return Report(
            name, seed, check(seen), faults, len(seen.jobs), _attempts(seen),
            time.monotonic() - self._began,
        )  # fmt: skip


def _attempts(seen: Observation) -> int:
    return sum(len(job.attempts) for job in seen.jobs)


def kills(
    home: Path, model: Path, seed: int, *, count: int, seconds: float, jobs: int = 20,
    pause: float = 0.6, settle: float = 240.0,
) -> Report:  # fmt: skip
    """Deal `count` faults while jobs come, run, pause, go on and are cancelled; `jobs` of them at a time."""
    with Scene(home, model, seed) as scene:
        killer = Killer(scene.stack, scene.watcher, seed, count, seconds, pause)
        thread = threading.Thread(target=killer.run, name="killer")
        thread.start()
        try:
            _work_while(thread, scene.workload, jobs)
        finally:
            killer.enough.set()
            thread.join(60)
        if killer.failure is not None:
            raise killer.failure
        until(scene.stack.client.is_ready, 60, "the api is ready after the faults", scene.stack)
        return scene.finish("kills", seed, killer.done, settle)


def _work_while(killing: threading.Thread, workload: Workload, jobs: int) -> None:
    """Keep `jobs` unfinished jobs in the stack and disturb some of them until the killing is over."""
    for _ in range(jobs):
        workload.submit()
    while killing.is_alive():
        workload.disturb()
        killing.join(workload.rng.uniform(0.2, 1.5))
        workload.top_up(jobs)


def wiped_broker(home: Path, model: Path, seed: int, *, jobs: int = 5) -> Report:
    """Stop the stack, delete the broker's store, start again: every unfinished job goes on and none is doubled."""
    with Scene(home, model, seed) as scene:
        stack, workload = scene.stack, scene.workload
        uuids = [workload.submit(max_steps=24, save_steps=6, num_epochs=9) for _ in range(jobs)]
        until(lambda: _step(stack, uuids[0]) >= 7, 90, "the first job has a checkpoint", stack)
        workload.act(uuids[-1], "pause")
        stack.stop()
        shutil.rmtree(home / "nats" / "store")
        stack.start()
        return scene.finish("wiped broker", seed, Counter({"wipe store": 1}), 240)


def _step(stack: Stack, job: str) -> int:
    shown = stack.client.jobs.get(job)
    return shown.progress.step if shown.progress else 0


def cut_saves(
    home: Path, model: Path, seed: int, *, count: int, seconds: float, kills_per_job: int = 3
) -> Report:
    """Kill trainers while a checkpoint is being written; nothing cut short is listed or resumed from.

    Only kills that left an unfinished folder behind are counted as cuts.
    """
    rng, done = random.Random(seed), Counter[str]()
    deadline = time.monotonic() + seconds
    with Scene(home, model, seed) as scene:
        hits: Counter[str] = Counter()
        while done["cut a save"] < count and time.monotonic() < deadline:
            _keep_busy(scene, hits, kills_per_job)
            job = _kill_in_save(scene, rng, hits, kills_per_job)
            if job is not None:
                hits[job] += 1
                done["cut a save" if _unfinished(scene, job) else "just after a save"] += 1
        return scene.finish("cut saves", seed, done, 300)


def _keep_busy(scene: Scene, hits: Counter[str], limit: int) -> None:
    """Keep one job more than there are slots that may still be killed; jobs that ended may not."""
    live = {job for job, _ in scene.watcher.live}
    for job in scene.workload.bodies:
        if job not in live and hits[job] < limit:
            shown = scene.stack.client.jobs.get(job)
            hits[job] = limit if shown.is_terminal else hits[job]
    while sum(hits[job] < limit for job in scene.workload.bodies) <= int(SLOTS):
        scene.workload.submit(max_steps=24, save_steps=2, num_epochs=9)


def _kill_in_save(scene: Scene, rng: random.Random, hits: Counter[str], limit: int) -> str | None:
    """Freeze a trainer once it has begun a save, let it go on for a moment, kill it; None where none was caught."""
    wait = time.monotonic() + 1.0
    while time.monotonic() < wait:
        for (job, _), processes in list(scene.watcher.live.items()):
            trainer = processes.trainer
            if trainer is None or hits[job] >= limit or not _unfinished(scene, job):
                continue
            trainer.send(signal.SIGSTOP)
            caught = bool(_unfinished(scene, job))
            trainer.send(signal.SIGCONT)
            if not caught:
                continue
            time.sleep(rng.uniform(0, 0.01))
            if trainer.send(signal.SIGKILL):
                until(lambda p=trainer: not p.is_alive(), 10, "the trainer is dead")  # type: ignore[misc]
                return job
        time.sleep(0.001)
    return None


def _unfinished(scene: Scene, job: str) -> list[str]:
    try:
        names = os.listdir(scene.stack.home / "checkpoints" / job)  # noqa: PTH208 - asked a thousand times a second
    except FileNotFoundError:
        return []
    return [name for name in names if name.startswith(".tmp-checkpoint-")]
