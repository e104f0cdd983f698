"""Virtual time: machines with drifting clocks that freeze and reboot, processes that die, generators as their threads."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

WALL = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
Thread = Generator[float, None, None]
"""Yields how many seconds of its machine's clock it sleeps."""


class Violation(AssertionError):
    """A promise was broken."""


class Crash(BaseException):
    """The process that is running dies at this very point."""


@dataclass(eq=False)
class Machine:
    """One computer. Its boot clock runs at `rate` seconds per true second, frozen or not, and starts anew at a boot."""

    name: str
    rate: float = 1.0
    frozen: bool = False
    booted_at: float = 0.0
    boots: int = 0
    frozen_since: float = 0.0
    thawed_at: float = -1e9
    sleeps: bool = False
    """This time it is suspended: its timers stand still (CLOCK_MONOTONIC) while the boot clock goes on."""
    lag: float = 0.0
    """True seconds for which its timers have stood still so far."""
    offset: float = 100.0
    deferred: list[tuple[float, Callable[[], None], Process, float | None]] = field(
        default_factory=list
    )

    @property
    def boot_id(self) -> str:
        """Changes with each boot."""
        return f"{self.name}-boot{self.boots}"


@dataclass(eq=False)
class Process:
    """Something that can be killed."""

    machine: Machine
    name: str
    alive: bool = True


@dataclass(eq=False)
class Engine:
    """The event queue; everything random comes from one generator, so that a seed names a whole history."""

    seed: int
    now: float = 0.0
    trace: list[tuple[float, str, str, tuple[object, ...]]] = field(default_factory=list)
    events: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    """What happened at least once in this history, and how often."""

    def __post_init__(self) -> None:
        """Begin at zero."""
        self.rng = random.Random(self.seed)
        self._heap: list[tuple[float, int, Callable[[], None], Process | None, float | None]] = []
        self._count = 0

    def saw(self, what: str) -> None:
        """Count that something rare happened."""
        self.seen[what] += 1

    def note(self, who: str, what: str, *detail: object) -> None:
        """Remember a line of the trace; it is only made into text when something is wrong."""
        self.trace.append((self.now, who, what, detail))

    def at(
        self,
        when: float,
        work: Callable[[], None],
        process: Process | None = None,
        lag: float | None = None,
    ) -> None:
        """Do `work` at true time `when`, unless `process` is dead by then; `lag`: the machine's when a timer was set."""
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, work, process, lag))

    def after(
        self, seconds: float, work: Callable[[], None], process: Process | None = None
    ) -> None:
        """Do `work` when the clock of the process's machine has gone on by `seconds`."""
        if process is None:
            self.at(self.now + seconds, work)
        else:
            machine = process.machine
            self.at(self.now + seconds / machine.rate, work, process, machine.lag)

    def spawn(
        self, process: Process, thread: Thread, done: Callable[[], None] | None = None
    ) -> None:
        """Run a generator as a thread of `process`, from now on."""

        def advance() -> None:
            try:
                pause = next(thread)
            except StopIteration:
                if done is not None:
                    done()
                return
            self.after(pause, advance, process)

        self.after(0.0, advance, process)

    def run(self, until: float, stop: Callable[[], bool] | None = None) -> bool:
        """Let time pass up to `until`; tell whether `stop` said so earlier."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until:
            when, _, work, process, lag = pop(heap)
            self.now = when
            if process is not None:
                machine = process.machine
                if not process.alive:
                    continue
                if machine.frozen:
                    machine.deferred.append((when, work, process, lag))
                    continue
                if lag is not None and lag < machine.lag:
                    self.at(when + machine.lag - lag, work, process, machine.lag)
                    continue
            self.events += 1
            try:
                work()
            except Crash:
                continue  # who dies has cleaned up already
            if stop is not None and stop():
                return True
        self.now = max(self.now, until)
        return False

    # clocks

    def boot(self, machine: Machine) -> float:
        """Return the machine's CLOCK_BOOTTIME."""
        return machine.offset + (self.now - machine.booted_at) * machine.rate

    def wall(self, machine: Machine) -> datetime:
        """Return the machine's wall clock: it drifts as well, for ever."""
        return WALL + timedelta(seconds=self.now * machine.rate)

    def freeze(self, machine: Machine, *, sleeps: bool) -> None:
        """Stop a whole machine; `sleeps`: like a closed laptop, else like processes that get no time."""
        machine.frozen, machine.sleeps, machine.frozen_since = True, sleeps, self.now

    def thaw(self, machine: Machine) -> None:
        """Let a frozen machine go on.

        What came or fell due meanwhile happens at once, in its order; timers of a machine that slept have stood still.
        """
        machine.frozen, machine.thawed_at = False, self.now
        slept = self.now - machine.frozen_since if machine.sleeps else 0.0
        machine.lag += slept
        deferred, machine.deferred = machine.deferred, []
        soon = self.now
        for when, work, process, lag in deferred:
            if lag is not None and slept:
                self.at(when + machine.lag - lag, work, process, machine.lag)
            else:
                soon += self.rng.uniform(0.0, 0.005)
                self.at(soon, work, process, None if lag is None else machine.lag)


def clock_of(engine: Engine, machine: Machine) -> VirtualClock:
    """Return the machine's clocks in the shape that product code takes."""
    return VirtualClock(engine, machine)


@dataclass(frozen=True)
class VirtualClock:
    """A shared.clock.Clock."""

    engine: Engine
    machine: Machine

    def now(self) -> datetime:
        """Return the wall clock."""
        return self.engine.wall(self.machine)

    def boot(self) -> float:
        """Return the boot clock."""
        return self.engine.boot(self.machine)
