"""What every proof needs: a stack with its hosts, a watcher and a workload, and the report of what was found."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Self

from tests.e2e.stack import Stack
from tests.faults.checker import Observation, Violation, check
from tests.faults.killer import service
from tests.faults.observing import Sight, observe
from tests.faults.process_table import leftovers, processes_of
from tests.faults.watcher import Watcher
from tests.faults.workload import Workload

Env = Mapping[str, str]
"""Settings of the stack beside those of the proof."""
NO_ENV: Env = MappingProxyType({})
TRAINYARD = [sys.executable, "-P", "-m", "trainyard.cli.main"]
RESTART_CAP = "0.5"
"""Services come back at once, so that the faults meet a stack at work."""


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


class SecondHost:
    """An agent of its own home that joins the stack by code, as another machine would."""

    def __init__(self, home: Path, env: Mapping[str, str]) -> None:
        self.home = home
        self.env = {**env, "TRAINYARD_HOME": str(home)}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, stack: Stack) -> None:
        self.home.mkdir(parents=True)
        code = stack.client.hosts.join_code()["code"]
        join = [*TRAINYARD, "agent", "join", stack.client.url, code, "--label", "box2"]
        subprocess.run(join, env=self.env, check=True, timeout=240, capture_output=True)
        with (self.home / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*TRAINYARD, "agent"], env=self.env, stdout=log, stderr=log
            )

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(120)


class Scene:
    """Starts on entering; `finish` stops all of it and returns what was seen."""

    def __init__(
        self, home: Path, model: Path, seed: int, *, hosts: int = 1, env: Env = NO_ENV
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        own = {"TRAINYARD_AGENT_SLOTS": "3", "TRAINYARD_RESTART_CAP_SECONDS": RESTART_CAP}
        self.stack = Stack(home, **{**own, **env})
        self.second = SecondHost(home / "box2", self.stack.env) if hosts > 1 else None
        self.homes = [home] if self.second is None else [home, self.second.home]
        self.watcher = Watcher(self.homes)
        self.workload = Workload(self.stack, model, random.Random(seed))
        self.stored_before: dict[tuple[str, int], tuple[int, ...]] = {}
        self.never_complete: set[str] = set()
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        try:
            self.stack.start()
            if self.second is not None:
                self.second.start(self.stack)
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
            if self.second is not None:
                self.second.stop()
            if self.stack.process is not None and self.stack.process.poll() is None:
                self.stack.stop()
            for pid in [p for home in self.homes for p in processes_of(home)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def agent_pid(self, home: Path) -> int:
        """Return the process of the agent of a host."""
        if self.second is not None and home == self.second.home:
            assert self.second.process is not None
            return self.second.process.pid
        found = service(self.stack, "agent")
        if found is None:
            raise AssertionError("the agent does not run")
        return found.pid

    def finish(self, name: str, seed: int, faults: Counter[str], settle: float) -> Report:
        """Wait for the jobs, judge everything, stop the stack and look for what it left."""
        self.workload.settle(settle)
        seen = observe(self._sight())
        if self.second is not None:
            self.second.stop()
        self.stack.stop()
        left = [text for home in self.homes for text in leftovers(home, 60)]
        seen = replace(seen, orphans=(*seen.orphans, *left))
        return Report(
            name, seed, check(seen), faults, len(seen.jobs), _attempts(seen),
            time.monotonic() - self._began,
        )  # fmt: skip

    def _sight(self) -> Sight:
        assert self.stack.process is not None
        roots = [(self.stack.home, self.stack.process.pid)]
        if self.second is not None:
            roots.append((self.second.home, self.agent_pid(self.second.home)))
        return Sight(
            self.stack, self.workload, self.watcher, self.homes, self.stored_before,
            never_complete=sorted(self.never_complete), roots=roots,
        )  # fmt: skip


def _attempts(seen: Observation) -> int:
    return sum(len(job.attempts) for job in seen.jobs)
