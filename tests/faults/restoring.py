"""The proof of backup and restore: a stack at work, a backup, more work, everything killed, databases lost, restored."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from tests.e2e.pacer import Pacer
from tests.e2e.stack import ROOT, Stack, until
from tests.faults.checker import ENDLESS, Observation, check
from tests.faults.observing import observe
from tests.faults.proof import Report, Scene
from tests.faults.workload import insist, tiny_job

DATABASES = ("scheduler.db", "api/main.db", "api/telemetry.db")
LONG = {
    "max_steps": 300,
    "num_epochs": 200,
    "save_steps": 60,
    "logging_steps": 1,
    "context_length": 64,
}
SLOW = {"steady", "paused", "ends after", "late and running"}
"""Jobs that are to be at work at some moment: they make a step now and then until they may end."""
SETTLE_SECONDS = 400.0


@dataclass
class Story:
    """The jobs by the part they play, and what was seen of them on the way."""

    pacer: Pacer
    jobs: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    """Idempotency key of each."""
    frames: dict[str, int] = field(default_factory=dict)
    """Newest frame number that a client had seen before the loss."""
    trainer: int = 0
    """Pid of the trainer that ran all along."""


def command(stack: Stack, *words: str, expect: int = 0) -> str:
    """Run `trainyard WORDS` on the home of `stack` and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainyard.cli.main", *words],
        cwd=ROOT, env=stack.env, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == expect, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def restored(
    home: Path,
    model: Path,
    seed: int,
    *,
    keep_bus: bool,
    sabotage: Callable[[Path], None] | None = None,
) -> tuple[Report, Story, Observation]:
    """Tell the whole story and judge how it ends; `sabotage` spoils the restored home before the start."""
    with Scene(home, model, seed) as scene, Pacer([scene.stack.jobs_dir]) as pacer:
        story, stack = Story(pacer), scene.stack
        _before(scene, story)
        backup = home.parent / f"{home.name}-backup.tar"
        print(command(stack, "backup", "--out", str(backup)))
        _after(scene, story)
        for job in story.jobs.values():
            with contextlib.suppress(Exception):
                story.frames[job] = stack.client.jobs.metrics(job, points=10).last_seq
        kill_everything(stack)
        lose_databases(home)
        if not keep_bus:
            shutil.rmtree(home / "nats" / "store")
        print(command(stack, "restore", str(backup), "--force"))
        if sabotage is not None:
            sabotage(home)
        stack.start()
        pacer.free |= set(story.jobs.values())
        unheard_of = set() if keep_bus else _forget_what_came_after(scene, story)
        report, seen = _finish(scene, seed, unheard_of)
        return report, story, seen


def _submit(scene: Scene, story: Story, part: str, **changes: object) -> str:
    key = f"key-{part}"
    body = tiny_job(scene.workload.model, name=part, **changes)
    job = insist(lambda: scene.stack.client.jobs.submit(body, idempotency_key=key))
    scene.workload.bodies[job.uuid] = body
    story.jobs[part], story.keys[part] = job.uuid, key
    if part not in SLOW:
        story.pacer.free.add(job.uuid)
    return job.uuid


def _status(scene: Scene, job: str, *wanted: str) -> None:
    client = scene.stack.client
    until(lambda: client.jobs.get(job).status in wanted, 90, f"{job} is {wanted}", scene.stack)


def _step(scene: Scene, job: str, step: int) -> None:
    def reached() -> bool:
        shown = scene.stack.client.jobs.get(job)
        return shown.progress is not None and shown.progress.step >= step

    until(reached, 90, f"{job} has reached step {step}", scene.stack)


def _before(scene: Scene, story: Story) -> None:
    """Jobs in every state at the moment of the backup."""
    done = _submit(scene, story, "done")
    _status(scene, done, "COMPLETED")
    steady = _submit(scene, story, "steady", **LONG)
    paused = _submit(scene, story, "paused", max_steps=60, num_epochs=50, save_steps=10)
    ends = _submit(scene, story, "ends after", max_steps=80, num_epochs=50, save_steps=20)
    _submit(scene, story, "waits")
    _step(scene, steady, 1)
    _step(scene, paused, 1)
    scene.workload.act(paused, "pause")
    _status(scene, paused, "PAUSED")
    _step(scene, ends, 1)
    story.trainer = scene.stack.trainer_pid(steady, 1)


def _after(scene: Scene, story: Story) -> None:
    """What happens between the backup and the loss: submits, ends, a pause undone, a cancel, a delete."""
    workload = scene.workload
    story.pacer.free.add(story.jobs["ends after"])
    _submit(scene, story, "late")
    gone = _submit(scene, story, "gone", max_steps=ENDLESS, num_epochs=1000)
    workload.act(gone, "cancel")
    workload.act(story.jobs["paused"], "resume")
    _status(scene, gone, "CANCELLED")
    for part in ("waits", "ends after", "late"):
        _status(scene, story.jobs[part], "COMPLETED")
    _submit(scene, story, "late and running", max_steps=150, num_epochs=100, save_steps=30)
    _step(scene, story.jobs["late and running"], 5)
    assert not scene.stack.client.jobs.get(story.jobs["steady"]).is_terminal, (
        "steady must outlive the loss"
    )


def kill_everything(stack: Stack) -> None:
    """kill -9 of `up` and of all services; shims and trainers go on."""
    assert stack.process is not None
    up = psutil.Process(stack.process.pid)
    services = up.children()
    for process in (up, *services):
        process.kill()
    stack.process.wait(120)
    psutil.wait_procs(services, timeout=120)
    (stack.home / "run" / "stack.json").unlink(missing_ok=True)


def lose_databases(home: Path) -> None:
    """Remove all SQL of the stack."""
    for name in DATABASES:
        for suffix in ("", "-wal", "-shm"):
            (home / f"{name}{suffix}").unlink(missing_ok=True)


def _forget_what_came_after(scene: Scene, story: Story) -> set[str]:
    """With the broker's store lost too, nobody has what was submitted after the backup.

    Return the jobs of which hosts say what the restored databases do not know: those, and the one whose next attempt
    began after the backup. That is set aside; what is known later is sent again, which the steps stored show.
    """
    lost = {story.jobs.pop(part) for part in ("late", "gone", "late and running")}
    for job in lost:
        del scene.workload.bodies[job]
    scene.workload.cancels.clear()
    scene.workload._asked.clear()
    return lost | {story.jobs["paused"]}


def _finish(scene: Scene, seed: int, unheard_of: set[str]) -> tuple[Report, Observation]:
    began = time.monotonic()
    scene.workload.settle(SETTLE_SECONDS)
    seen = observe(scene._sight())
    seen = replace(seen, dead_letters=_set_aside(scene.stack.home, unheard_of))
    faults = Counter({"restore": 1})
    seconds = time.monotonic() - began
    return Report("restore", seed, check(seen), faults, len(seen.jobs), 0, seconds), seen


def _set_aside(home: Path, unheard_of: set[str]) -> int:
    """Return how many messages were set aside, but for attempts that nobody knew of jobs named in `unheard_of`."""
    with contextlib.closing(sqlite3.connect(home / "api" / "telemetry.db")) as database:
        rows = database.execute("SELECT subject, reason FROM dead_letter").fetchall()
    return sum(
        reason != "unknown_attempt" or subject.split(".")[2] not in unheard_of
        for subject, reason in rows
    )
