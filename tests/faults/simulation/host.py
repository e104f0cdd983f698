"""A host below its agent: files that survive everything, locks, shims with the real lease watch, trainers."""

from __future__ import annotations

import os
import signal
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import orjson

from services.gpu_agent import shim as real_shim
from services.gpu_agent.core.exits import ExitRecord
from shared.events.calls import ControlEntry
from shared.jobs.reasons import Reason
from shared.runs import RunResult
from tests.faults.simulation.engine import Engine, Machine, Process, Thread

LOCK_PATIENCE = real_shim.LOCK_PATIENCE


@dataclass
class Plan:
    """What the trainer of a job does."""

    steps: int
    save_every: int
    step_seconds: float
    fails_at: int | None = None
    failure: Reason | None = None
    """None: it dies with code 1 and no result."""
    deaf: float = 0.05
    """Chance that SIGTERM does nothing."""


@dataclass(eq=False)
class AttemptDir:
    """`{work_dir}/{job}/attempts/<n>/`."""

    job: str
    attempt: int
    records: list[dict[str, Any]] = field(default_factory=list)
    facts: bytearray = field(default_factory=bytearray)
    events: bytearray = field(default_factory=bytearray)
    metric_steps: list[int] = field(default_factory=list)
    """What was written into `events`, for the checks."""
    entry: ControlEntry | None = None
    launch: dict[str, Any] | None = None
    stop: dict[str, Any] | None = None
    result: RunResult | None = None
    exit: ExitRecord | None = None
    boot_id: str | None = None
    """From pid.json; None while that is not there: the attempt was not used."""
    relay: dict[str, Any] = field(default_factory=dict)
    claim: str | None = None
    """Who has decided whether this attempt ever begins: `shim` or `agent`."""
    shim: Process | None = None
    trainer: Trainer | None = None
    shim_killed: bool = False

    def claims(self, who: str) -> bool:
        """See services.gpu_agent.shim.claim."""
        self.claim = self.claim or who
        return self.claim == who

    @property
    def holds_locks(self) -> bool:
        """Tell whether shim or trainer lives: both have the descriptors."""
        if self.shim is not None and self.shim.alive:
            return True
        return self.trainer is not None and self.trainer.process.alive


@dataclass(eq=False)
class Trainer:
    """The process that trains."""

    process: Process
    files: AttemptDir
    gpus: tuple[str, ...]
    term: bool = False
    deaf: bool = False
    code: int | None = None
    signal: int | None = None
    watch: Any = None
    """The shim's, once it looks."""


@dataclass(eq=False)
class SimHost:
    """One host."""

    engine: Engine
    id: str
    machine: Machine
    gpus: tuple[str, ...]
    shared: dict[str, set[int]] | None
    """Checkpoints on the folder that all hosts share, by job; None: each host has its own."""
    plans: dict[str, Plan]
    on_trainers: Callable[[Trainer, bool], None]
    """Called when a trainer starts (True) and ends (False)."""
    on_stop: Callable[[AttemptDir], None] = lambda _: None
    """Called when the agent stops a run."""
    on_launch: Callable[[], float] = lambda: 0.0
    """Called when a shim starts; returns the seconds that this takes beyond the usual."""
    attempts: dict[tuple[str, int], AttemptDir] = field(default_factory=dict)
    lease: dict[str, Any] | None = None
    own: dict[str, set[int]] = field(default_factory=dict)
    trainers: list[Trainer] = field(default_factory=list)
    shims: list[Process] = field(default_factory=list)

    # files and locks

    def checkpoints(self, job: str) -> set[int]:
        """Return the steps whose checkpoints can be read here."""
        store = self.own if self.shared is None else self.shared
        return store.setdefault(job, set())

    def folder(self, job: str) -> str:
        """Return where a job's checkpoints lie."""
        return f"/shared/{job}" if self.shared is not None else f"/{self.id}/{job}"

    def holder(self, lock: str) -> AttemptDir | None:
        """Return the attempt whose processes hold a lock (`job:<id>` or a GPU)."""
        for one in self.attempts.values():
            used = one.launch is not None and one.boot_id is not None
            if used and one.holds_locks and lock in one.launch["locks"]:  # type: ignore[index]
                return one
        return None

    # processes

    def launch(self, files: AttemptDir, done: Callable[[str], None]) -> None:
        """Start a shim; `done` hears `ok`, `locked` or `used`."""
        process = Process(self.machine, f"shim-{files.job[-2:]}.{files.attempt}")
        self.shims = [*(one for one in self.shims if one.alive), process]
        self.engine.spawn(process, self._shim(process, files, done))

    def _shim(self, process: Process, files: AttemptDir, done: Callable[[str], None]) -> Thread:
        launch = files.launch
        assert launch is not None
        rng = self.engine.rng
        usual = rng.uniform(0.002, 0.05) if rng.random() < 0.9 else rng.uniform(0.5, 12.0)
        yield usual + self.on_launch()
        waited = 0.0
        while any(self.holder(lock) for lock in launch["locks"]):
            if waited > LOCK_PATIENCE:
                process.alive = False
                done("locked")
                return
            yield 0.2
            waited += 0.2
        used = files.boot_id is not None or files.exit is not None
        late = self._with_fakes(files, None, real_shim.is_overdue)(launch)
        if late:
            self.engine.saw("a shim found the lease of its start over")
        if used or late or not files.claims(f"shim-{id(process)}"):
            process.alive = False
            done("used")
            return
        files.shim = process
        files.boot_id = self.machine.boot_id
        yield self.engine.rng.uniform(0.001, 0.05)
        trainer = self._start_trainer(files)
        yield 0.001
        done("ok")
        yield from self._keep(files, trainer, launch)

    def _keep(self, files: AttemptDir, trainer: Trainer, launch: dict[str, Any]) -> Thread:
        """Watch the lease with the product's own code over this host's clock, files and signals."""
        watch, look = self._lease_watch(files, trainer, launch)
        trainer.watch = watch
        while trainer.process.alive and watch.active:
            yield watch.tick
            if trainer.process.alive:
                look(watch)

    def _reap(self, trainer: Trainer) -> None:
        """The shim clears up and writes its last file; it hears of the end at once."""
        files, shim = trainer.files, trainer.files.shim

        def leave() -> None:
            assert shim is not None
            lost = trainer.watch is not None and trainer.watch.lost
            files.exit = ExitRecord(
                exit_code=trainer.code, signal=trainer.signal, lease_lost=bool(lost)
            )
            shim.alive = False

        if shim is not None and shim.alive:
            self.engine.after(self.engine.rng.uniform(0.01, 0.3), leave, shim)

    def _lease_watch(
        self, files: AttemptDir, trainer: Trainer, launch: dict[str, Any]
    ) -> tuple[Any, Callable[[Any], None]]:
        cls = real_shim.LeaseWatch
        watch = object.__new__(cls)
        self._with_fakes(files, trainer, cls.__init__)(watch, "attempt", trainer, launch)
        return watch, self._with_fakes(files, trainer, cls.look)

    def _with_fakes(self, files: AttemptDir, trainer: Trainer | None, function: Any) -> Any:
        """Return a function of the shim over this host's clock, files and signals."""

        def write_json(_: str, document: dict[str, Any]) -> None:
            files.stop = document

        def kill(_: Any, number: int) -> None:
            assert trainer is not None
            self.signal(trainer, number)

        fakes = {
            "now": lambda: self.engine.boot(self.machine),
            "boot_id": lambda: self.machine.boot_id,
            "read_json": lambda _: self.lease,
            "write_json": write_json,
            "os": SimpleNamespace(path=os.path, kill=kill),
            "time": SimpleNamespace(time=self.wall),
        }
        return types.FunctionType(function.__code__, {**real_shim.__dict__, **fakes})

    def wall(self) -> float:
        """Return time.time() of this host."""
        return self.engine.wall(self.machine).timestamp()

    def _start_trainer(self, files: AttemptDir) -> Trainer:
        assert files.launch is not None
        process = Process(self.machine, f"trainer-{files.job[-2:]}.{files.attempt}")
        gpus = tuple(lock for lock in files.launch["locks"] if not lock.startswith("job:"))
        trainer = Trainer(process, files, gpus)
        trainer.deaf = self.engine.rng.random() < self.plans[files.job].deaf
        files.trainer = trainer
        self.trainers.append(trainer)
        self.on_trainers(trainer, True)
        self.engine.spawn(process, self._train(trainer, self.plans[files.job]))
        return trainer

    def _train(self, trainer: Trainer, plan: Plan) -> Thread:
        rng = self.engine.rng
        files = trainer.files
        yield rng.uniform(0.2, 2.0)
        step = max(self.checkpoints(files.job), default=0)
        while step < plan.steps:
            yield plan.step_seconds * rng.uniform(0.7, 1.3)
            if trainer.term and not trainer.deaf:
                break
            step += 1
            self._write(files, {"type": "metric", "step": step, "metrics": {"loss": 1.0 / step}})
            files.metric_steps.append(step)
            if step == plan.fails_at:
                if plan.failure is not None:
                    files.result = RunResult(outcome="failed", reason=plan.failure, step=step)
                self.end_trainer(trainer, code=1)
                return
            if step % plan.save_every == 0:
                yield rng.uniform(0.05, 0.4)
                self._save(files, step)
        yield rng.uniform(0.05, 1.0)
        if step not in self.checkpoints(files.job) and step > 0:
            self._save(files, step)
        mode = (files.stop or {}).get("mode")
        if step >= plan.steps:
            files.result = RunResult(outcome="completed", step=step, total_steps=plan.steps)
        else:
            files.result = RunResult(outcome="stopped", stop_cause=mode, step=step)
        yield rng.uniform(0.0, 0.3)
        self.end_trainer(trainer, code=0)

    def _save(self, files: AttemptDir, step: int) -> None:
        self.checkpoints(files.job).add(step)
        path = f"{self.folder(files.job)}/checkpoint-{step}"
        self._write(files, {"type": "checkpoint", "step": step, "kind": "full", "path": path})

    def _write(self, files: AttemptDir, record: dict[str, Any]) -> None:
        files.events += orjson.dumps({"t": round(self.wall(), 3), **record}) + b"\n"

    def signal(self, trainer: Trainer, number: int) -> None:
        """Send a signal to a trainer."""
        if not trainer.process.alive:
            return
        if number == signal.SIGTERM:
            trainer.term = True
        elif number == signal.SIGKILL:
            if self.engine.rng.random() < 0.2:
                trainer.files.events += b'{"type":"metric","step'  # torn in the middle of a line
            self.end_trainer(trainer, number=9)

    def end_trainer(
        self, trainer: Trainer, code: int | None = None, number: int | None = None
    ) -> None:
        """Let a trainer be dead."""
        trainer.code, trainer.signal = code, number
        self.on_trainers(trainer, False)
        trainer.process.alive = False
        self.trainers.remove(trainer)
        self._reap(trainer)

    def kill_shim(self, files: AttemptDir) -> None:
        """Kill a shim; its trainer goes on."""
        if files.shim is not None and files.shim.alive:
            files.shim.alive = False
            files.shim_killed = True

    def lose_power(self) -> None:
        """Kill everything on the machine."""
        for trainer in list(self.trainers):
            self.end_trainer(trainer, number=9)
        for shim in self.shims:
            shim.alive = False
        self.machine.deferred.clear()
        self.machine.frozen = False
