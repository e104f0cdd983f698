"""The proof of frozen hosts: while one sleeps its jobs go on elsewhere, and what it says when it wakes does not count."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from services.gpu_agent.processes import ProcessRef
from services.gpu_agent.shim import stat_fields
from tests.e2e.stack import until
from tests.faults.checker import ENDLESS, WATCHDOG_SECONDS
from tests.faults.observing import stored_steps
from tests.faults.scene import NO_ENV, Env, Report, Scene
from tests.faults.watcher import Key

LEASES = {
    "TRAINYARD_AGENT_HEARTBEAT_SECONDS": "0.5",
    "TRAINYARD_SCHEDULER_LEASE_TTL": "3",
    "TRAINYARD_SCHEDULER_GRACE": "0.5",
    "TRAINYARD_SCHEDULER_STOP_AFTER": "5",
    "TRAINYARD_SCHEDULER_KILL_GRACE": "1",
    "TRAINYARD_SCHEDULER_REQUEUE_MARGIN": "4",
}
"""A silent host's jobs are moved after about 10 s; its shims look every 2 s and have to be done by then."""
JOBS = 2
MOVED_SECONDS = 60.0
KINDS = ("host", "agent")
"""`host`: everything on it is frozen. `agent`: only the agent, so that shims and trainers go on without a lease."""
BESIDE_SECONDS = 2 * WATCHDOG_SECONDS
"""So long the agent alone sleeps on beside an attempt elsewhere: a trainer that nobody has stopped is seen beside it."""


def frozen_hosts(
    home: Path,
    model: Path,
    seed: int,
    *,
    rounds: int,
    steps: int = 400,
    settle: float = 240.0,
    env: Env = NO_ENV,
) -> Report:
    """Freeze one of two hosts for longer than its lease, `rounds` times, each time until its jobs run on the other.

    Where only the agent is frozen the jobs have no end, so that nothing but the lease ends a trainer; they are cancelled
    afterwards.
    """
    rng, done = random.Random(seed), Counter[str]()
    shared = str(home / "checkpoints")
    leases = LEASES | {"TRAINYARD_AGENT_SHARED_PATHS": shared}
    with Scene(home, model, seed, hosts=2, env={**leases, **env}) as scene:
        for number in range(rounds):
            kind = KINDS[(seed + number) % len(KINDS)]
            done[f"freeze {kind}"] += 1
            done["attempts moved"] += _freeze(scene, rng, kind, steps)
        return scene.finish("frozen hosts", seed, done, settle)


def _freeze(scene: Scene, rng: random.Random, kind: str, steps: int) -> int:
    """Freeze a host on which a job trains; let it wake once all of its attempts were taken over."""
    steps = ENDLESS if kind == "agent" else steps
    home = until(lambda: _busy_host(scene, rng, steps), MOVED_SECONDS, "a host trains", scene.stack)
    frozen = _processes(scene, home, kind)
    _send(frozen, signal.SIGSTOP)
    try:
        held = [key for key in scene.watcher.live if scene.watcher.host_of(*key) == home]
        moved = [key for key in held if _is_taken_over(scene, key)]
        for key in moved:
            scene.stored_before[key] = stored_steps(scene.stack.home, *key)
        if kind == "agent":
            time.sleep(BESIDE_SECONDS)
    finally:
        _send(frozen, signal.SIGCONT)
    for job in scene.workload.open_jobs():
        if _steps_of(scene, job) == ENDLESS:
            scene.workload.act(job, "cancel")
    return len(moved)


def _busy_host(scene: Scene, rng: random.Random, steps: int) -> Path | None:
    """Return a host on which a job of `steps` has saved something; keep enough such jobs in the stack for that."""
    workload = scene.workload
    while sum(_steps_of(scene, job) == steps for job in workload.open_jobs()) < JOBS:
        workload.submit(max_steps=steps, disconnect_policy="stop_and_requeue")
    ready = [
        home
        for key in sorted(scene.watcher.live)
        if _steps_of(scene, key[0]) == steps
        and (home := scene.watcher.host_of(*key)) is not None
        and 1 <= max(stored_steps(scene.stack.home, *key), default=0) < steps * 0.6
    ]
    return rng.choice(ready) if ready else None


def _steps_of(scene: Scene, job: str) -> int:
    return int(scene.workload.bodies[job]["max_steps"])


def _is_taken_over(scene: Scene, key: Key) -> bool:
    """Wait until a later attempt has a step stored: whatever this one sent before it was frozen is stored by then.

    False for a job that ended without one.
    """
    job, attempt = key

    def later() -> int | None:
        shown = scene.stack.client.jobs.get(job)
        begun = any(
            stored_steps(scene.stack.home, job, n) for n in range(attempt + 1, shown.attempt + 1)
        )
        return shown.attempt if begun or shown.is_terminal else None

    return bool(until(later, MOVED_SECONDS, f"{job} goes on elsewhere", scene.stack) > attempt)


def _processes(scene: Scene, home: Path, kind: str) -> list[ProcessRef]:
    agent = psutil.Process(scene.agent_pid(home))
    pids = [agent.pid]
    if kind == "host":
        pids += [p.pid for p in agent.children(recursive=True)]
        for key, run in list(scene.watcher.live.items()):
            if scene.watcher.host_of(*key) == home:
                pids += [ref.pid for ref in (run.shim, run.trainer) if ref is not None]
    return [ProcessRef(p, f[2]) for p in dict.fromkeys(pids) if (f := stat_fields(p)) is not None]


def _send(processes: Sequence[ProcessRef], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(PermissionError):
            process.send(number)


__all__ = ["frozen_hosts"]
