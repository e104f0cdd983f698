"""Random `kill -9`, SIGSTOP and SIGCONT of the parts of one stack, from a seed; it signals only what that stack started."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from services.gpu_agent import shim
from services.gpu_agent.processes import ProcessRef
from tests.e2e.stack import Stack
from tests.faults.process_table import ZYGOTE
from tests.faults.watcher import Watcher

SERVICES = {
    "api": "services.api",
    "scheduler": "services.scheduler",
    "agent": "services.gpu_agent",
    "broker": "nats-server",
}
WEIGHTS: Mapping[str, float] = {
    "api": 2,
    "scheduler": 3,
    "agent": 1.5,
    "zygote": 0.3,
    "shim": 5,
    "trainer": 5,
    "broker": 2,
}
"""Shims and trainers are often not there; then nothing is dealt."""
CALM_SHARE = 0.7
"""Before so many of the faults the stack gets the time to be at work again; the others hit what is just starting."""
CALM_SECONDS = 2.0
OWED_SECONDS = 10.0
"""So long a kill that is owed waits for a stack at work, before it is dealt all the same."""
WRITING_SECONDS = 0.5
"""A trainer that has written within this time is in the middle of it."""


@dataclass
class Killer:
    """`run` in a thread deals `count` kills, and stops beside them, about one every `pause` seconds; ends after `seconds`.

    The first kills are one for each kind of target, in random order, and the agent's comes while a trainer writes.
    """

    stack: Stack
    watcher: Watcher
    seed: int
    count: int
    seconds: float
    pause: float = 0.6
    stop_share: float = 0.3
    lethal_per_job: int = 4
    """Kills of one job's shim or trainer: it waits longer after each that came before a new checkpoint."""
    done: Counter[str] = field(default_factory=Counter)
    enough: threading.Event = field(default_factory=threading.Event)
    owed: list[str] = field(default_factory=lambda: list(WEIGHTS))
    """Kinds of target of which none was killed yet."""
    spared: set[str] = field(default_factory=set)
    """Jobs whose shim and trainer nobody touches: what ends them has to come from the product."""
    failure: BaseException | None = None
    _stopped: list[tuple[float, ProcessRef]] = field(default_factory=list)
    _hits: Counter[str] = field(default_factory=Counter)

    @property
    def kills(self) -> int:
        return kills_in(self.done)

    def run(self) -> None:
        """Deal the faults; whatever was stopped goes on in the end."""
        rng = random.Random(self.seed)
        deadline = time.monotonic() + self.seconds
        rng.shuffle(self.owed)
        try:
            while self.kills < self.count and time.monotonic() < deadline:
                if self.enough.wait(rng.uniform(0, 2 * self.pause)):
                    return
                if self.owed:
                    self._until_at_work(OWED_SECONDS)
                elif rng.random() < CALM_SHARE:
                    self._until_at_work(rng.uniform(1, 2) * CALM_SECONDS)
                self._continue(time.monotonic())
                self._deal(rng)
        except BaseException as error:  # noqa: BLE001 - told to the test that waits for it
            self.failure = error
        finally:
            self._continue(float("inf"))

    def _until_at_work(self, seconds: float) -> None:
        """Wait until every service answers and something trains, but not longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.enough.wait(0.1):
            self._continue(time.monotonic())
            if self.watcher.live and _agent_is_ready(self.stack) and self.stack.client.is_ready():
                return

    def _deal(self, rng: random.Random) -> None:
        name = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        stops = rng.random() < self.stop_share
        if self.owed:
            name, stops = self.owed[0], False
            self.owed[:] = [*self.owed[1:], name]  # its turn comes again until it was dealt
        pick, nap = rng.random(), rng.uniform(0.05, 2.0)
        target = self._target(name, pick, lethal=not stops)
        if target is None:
            return
        if target.send(signal.SIGSTOP if stops else signal.SIGKILL):
            self.done[f"{'stop' if stops else 'kill'} {name}"] += 1
            if name in self.owed and not stops:
                self.owed.remove(name)
            if stops:
                self._stopped.append((time.monotonic() + nap, target))

    def _target(self, name: str, pick: float, *, lethal: bool) -> ProcessRef | None:
        if name not in ("shim", "trainer"):
            wait = name == "agent" and name in self.owed and not self._is_written()
            return None if wait else service(self.stack, name)
        live = sorted((k, p) for k, p in self.watcher.live.items() if k[0] not in self.spared)
        if lethal:
            live = [(k, p) for k, p in live if self._hits[k[0]] < self.lethal_per_job]
        if not live:
            return None
        (job, _), processes = live[int(pick * len(live))]
        if lethal:
            self._hits[job] += 1
        return processes.shim if name == "shim" else processes.trainer

    def _is_written(self) -> bool:
        """Tell whether some trainer is writing metrics just now."""
        for job, attempt in list(self.watcher.live):
            with contextlib.suppress(OSError):
                found = (self.stack.attempt_dir(job, attempt) / "events.jsonl").stat()
                if time.time() - found.st_mtime < WRITING_SECONDS:
                    return True
        return False

    def _continue(self, now: float) -> None:
        due = [ref for at, ref in self._stopped if at <= now]
        self._stopped = [(at, ref) for at, ref in self._stopped if at > now]
        for ref in due:
            ref.send(signal.SIGCONT)


def _agent_is_ready(stack: Stack) -> bool:
    found = service(stack, "agent")
    said = shim.read_json(str(stack.home / "agents" / "local" / "agent.json"))
    return found is not None and said is not None and said.get("pid") == found.pid


def kills_in(done: Counter[str]) -> int:
    """Return how many of the faults were a `kill -9`."""
    return sum(n for what, n in done.items() if what.startswith("kill"))


def service(stack: Stack, name: str) -> ProcessRef | None:
    """Return the process of one part of the stack, or None while it is away."""
    assert stack.process is not None
    try:
        children = psutil.Process(stack.process.pid).children()
        if name == "zygote":
            agents = [c for c in children if SERVICES["agent"] in c.cmdline()]
            found = [z for a in agents for z in a.children() if ZYGOTE in z.cmdline()]
        else:
            found = [c for c in children if any(SERVICES[name] in w for w in c.cmdline())]
    except psutil.Error:
        return None
    fields = shim.stat_fields(found[0].pid) if found else None
    return None if fields is None else ProcessRef(found[0].pid, fields[2])
