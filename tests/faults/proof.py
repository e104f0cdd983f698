"""Three proofs: random kills, a wiped broker, kills during saves; the suite runs short ones, `make bench-faults` long ones."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from services.gpu_agent import checkpoint_store
from tests.e2e.stack import Stack, until
from tests.faults.checker import ENDLESS, Violation
from tests.faults.killer import SERVICES, Killer, service
from tests.faults.observing import unsent_requests
from tests.faults.scene import NO_ENV, Env, Report, Scene
from tests.faults.watcher import is_alive
from tests.faults.workload import insist

SLOTS = 3
"""Slots of the host, as in a Scene."""


def kills(
    home: Path, model: Path, seed: int, *, count: int, seconds: float, jobs: int = 20, keep: int = 20,
    pause: float = 0.6, settle: float = 240.0, env: Env = NO_ENV,
) -> Report:  # fmt: skip
    """Deal `count` kills, and stops beside them, while jobs come, run, pause, go on and are cancelled.

    `jobs` at first, and never fewer than `keep` that have not ended until the last kill. A job without end trains from
    before the first kill until each kind of target was killed once; then it is cancelled, and from there on nothing but
    the product can end it.
    """
    with Scene(home, model, seed, env=env) as scene:
        killer = Killer(scene.stack, scene.watcher, seed, count, seconds, pause)
        thread = threading.Thread(target=killer.run, name="killer")
        endless = _train_without_end(scene)
        thread.start()
        try:
            _work_while(thread, scene, killer, endless, (jobs, keep))
            _while_not(lambda: _cancel(scene, killer, endless), 30)
        finally:
            killer.enough.set()
            thread.join(60)
        if killer.failure is not None:
            raise killer.failure
        until(scene.stack.client.is_ready, 60, "the api is ready after the faults", scene.stack)
        if endless not in killer.spared:
            scene.workload.act(endless, "cancel")
        report = scene.finish("kills", seed, killer.done, settle)
        report.violations += _undealt(killer, endless)
        return report


def _undealt(killer: Killer, endless: str) -> list[Violation]:
    """Return what every proof has to deal and this one did not: it proves less than it says."""
    found = [Violation("fault not dealt", "killer", f"no kill of {name}") for name in killer.owed]
    if endless not in killer.spared:
        found.append(
            Violation("fault not dealt", endless, "it did not train when it was cancelled")
        )
    return found


def _train_without_end(scene: Scene) -> str:
    """Submit a job that nothing but a cancel ends, and return it, as a rule once it trains."""
    job = scene.workload.submit(max_steps=ENDLESS, save_steps=50, priority=95)
    scene.workload.left_alone.add(job)
    _while_not(lambda: _step(scene.stack, job) >= 1, 60)
    return job


def _while_not(check: Callable[[], bool], seconds: float) -> None:
    """Wait for `check`, and go on without it after `seconds`: a product with a bug in it may never come to that."""
    deadline = time.monotonic() + seconds
    while not check() and time.monotonic() < deadline:
        time.sleep(0.05)


def _cancel(scene: Scene, killer: Killer, job: str) -> bool:
    """Cancel the endless job if it trains; nobody touches its processes from there on. Tell whether that is done."""
    if job in killer.spared:
        return True
    killer.spared.add(job)
    if not any(j == job and is_alive(run.trainer) for (j, _), run in scene.watcher.live.items()):
        killer.spared.discard(job)
        return False
    scene.workload.act(job, "cancel")
    return True


def _work_while(
    killing: threading.Thread, scene: Scene, killer: Killer, endless: str, jobs: tuple[int, int]
) -> None:
    """Keep unfinished jobs in the stack and disturb some of them until the killing is over.

    `jobs`: how many at first, and how many that have not ended at least.
    """
    workload, (first, keep) = scene.workload, jobs
    for _ in range(first):
        workload.submit_some()
    while killing.is_alive():
        if not killer.owed:
            _cancel(scene, killer, endless)
        workload.disturb()
        killing.join(workload.rng.uniform(0.2, 1.5))
        workload.top_up(keep)


def wiped_broker(
    home: Path, model: Path, seed: int, *, jobs: int = 5, settle: float = 240.0, env: Env = NO_ENV
) -> Report:
    """Kill the stack, delete the broker's store, start again: every unfinished job goes on and none is doubled.

    Two of the jobs were acknowledged and published, and the scheduler had not read of them.
    """
    with Scene(home, model, seed, env=env) as scene:
        stack, workload = scene.stack, scene.workload
        uuids = [workload.submit(max_steps=24, save_steps=6, num_epochs=9) for _ in range(jobs)]
        until(lambda: _step(stack, uuids[0]) >= 7, 90, "the first job has a checkpoint", stack)
        workload.act(uuids[-1], "pause")
        _kill_all_while_requests_wait(scene)
        shutil.rmtree(home / "nats" / "store")
        stack.start()
        return scene.finish("wiped broker", seed, Counter({"wipe store": 1}), settle)


def _kill_all_while_requests_wait(scene: Scene) -> None:
    """Submit while the scheduler is frozen, then `kill -9` it and all that is above the trainers."""
    stack = scene.stack
    assert stack.process is not None
    scheduler = service(stack, "scheduler")
    assert scheduler is not None
    scheduler.send(signal.SIGSTOP)
    for _ in range(2):
        scene.workload.submit()
    until(lambda: unsent_requests(stack.home) == 0, 30, "the requests are in the broker", stack)
    services = [p for n in SERVICES if (p := service(stack, n)) is not None]
    stack.process.kill()
    stack.process.wait(60)
    for one in services:
        one.send(signal.SIGKILL)
        until(lambda one=one: not one.is_alive(), 10, "a service is dead")  # type: ignore[misc]
    stack.client.close()
    (stack.home / "run" / "stack.json").unlink()


def _step(stack: Stack, job: str) -> int:
    shown = stack.client.jobs.get(job)
    return shown.progress.step if shown.progress else 0


def cut_saves(
    home: Path, model: Path, seed: int, *, count: int, seconds: float, kills_per_job: int = 3,
    settle: float = 300.0, env: Env = NO_ENV,
) -> Report:  # fmt: skip
    """Kill trainers while a checkpoint is being written; nothing cut short is listed or resumed from.

    Only kills that left an unfinished folder behind are counted as cuts.
    """
    rng, done = random.Random(seed), Counter[str]()
    deadline = time.monotonic() + seconds
    with Scene(home, model, seed, env=env) as scene:
        hits: Counter[str] = Counter()
        while done["cut a save"] < count and time.monotonic() < deadline:
            _keep_busy(scene, hits, kills_per_job)
            job = _kill_in_save(scene, rng, hits, kills_per_job)
            if job is not None:
                hits[job] += 1
                done["cut a save" if _unfinished(scene, job) else "just after a save"] += 1
                _look_at_the_list(scene, job)
        return scene.finish("cut saves", seed, done, settle)


def _keep_busy(scene: Scene, hits: Counter[str], limit: int) -> None:
    """Keep one job more than there are slots that may still be killed; jobs that ended may not."""
    live = {job for job, _ in scene.watcher.live}
    for job in scene.workload.bodies:
        if job not in live and hits[job] < limit:
            shown = scene.stack.client.jobs.get(job)
            hits[job] = limit if shown.is_terminal else hits[job]
    while sum(hits[job] < limit for job in scene.workload.bodies) <= SLOTS:
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


def _look_at_the_list(scene: Scene, job: str) -> None:
    """Note a checkpoint that is listed and newer than any that is complete, or is there and is not whole.

    An older one may be gone: it is thinned out, and the list hears of it later. The list is asked first, then the disk.
    """
    for _ in range(3):
        listed = insist(lambda: scene.stack.client.jobs.checkpoints(job))
        there = checkpoint_store.list_complete(scene.stack.home / "checkpoints" / job)
        newest = max((c.step for c in there), default=-1)
        for c in listed:
            problem = checkpoint_store.verify(Path(c.path)) if Path(c.path).exists() else None
            if c.step > newest or (problem is not None and Path(c.path).exists()):
                scene.never_complete.add(f"{job} step {c.step}: {problem or 'absent'}")
        time.sleep(0.1)


def _unfinished(scene: Scene, job: str) -> list[str]:
    try:
        names = os.listdir(scene.stack.home / "checkpoints" / job)  # noqa: PTH208 - asked a thousand times a second
    except FileNotFoundError:
        return []
    return [name for name in names if name.startswith(".tmp-checkpoint-")]
