"""What goes wrong, and when: chosen by the seed, ended all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.faults.simulation.engine import Machine, Process, Thread
from tests.faults.simulation.host import SimHost

if TYPE_CHECKING:
    from tests.faults.simulation.world import World


class Faults:
    """One seed has its own mixture."""

    def __init__(self, world: World) -> None:
        """Choose the mixture."""
        self.world = world
        rng = world.rng
        self.rng = rng
        self.process = Process(Machine("fate"), "fate")
        world.broker.loss = rng.choice((0.0, 0.02, 0.1))
        world.broker.copies = rng.choice((0.0, 0.5))
        world.broker.delay = rng.choice((0.0, 0.05))
        world.broker.late = rng.choice((0.0, 0.0, 0.02))
        self.crash_chance = rng.choice((0.0, 0.0, 0.01, 0.03))
        if world.tight:
            self.crash_chance *= (
                0.1  # each scheduler after the first gives every host its patience anew
            )
        for node in world.schedulers:
            node.crash_chance = self.crash_chance
        world.api.crash_chance = self.crash_chance
        self.every = rng.choice((4.0, 8.0, 15.0))
        kinds: list[tuple[float, Callable[[], None]]] = [
            (8.0, self.partition), (1.0, self.cut_service), (3.0, self.pause),
            (0.5, self.pause_control), (2.0, self.kill_agent), (0.7, self.kill_shim),
            (1.5, self.kill_trainer), (1.0, self.reboot), (1.0, self.kill_scheduler),
            (1.0, self.kill_api), (1.0, self.stop_broker), (0.5, self.drain),
            (0.3, self.hang_store), (3.0, self.oversleep),
            (3.0 if len(world.schedulers) > 1 else 0.0, self.usurp),
        ]  # fmt: skip
        self.off: set[str] = set()
        """Hosts without power, or without an agent for now."""
        self.kinds = [work for _, work in kinds]
        self.weights = [weight * rng.choice((0.0, 1.0, 1.0, 3.0)) for weight, _ in kinds]
        self.strikes = rng.choice((0.0, 0.2, 0.4))
        """Chance that something goes wrong just when a promise hangs by a moment."""
        if world.tight:
            # long silence is what these are about: cut off, frozen, and little else
            quiet_ones = (self.partition, self.pause, self.oversleep, self.usurp)
            self.weights = [
                min(w, 1.0) if k in quiet_ones else w * 0.05
                for w, (_, k) in zip(self.weights, kinds, strict=True)
            ]
            self.weights[0] += 8.0
            self.every = 7.0
            self.strikes *= 0.2  # a start that is struck trains for nobody
            world.broker.slow = (0.1, 0.7)
            world.broker.delay = rng.choice((0.0, 0.4))

    def note(self, what: str, *detail: object) -> None:
        """Add a line to the trace."""
        self.world.engine.note("fault", what, *detail)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        """Undo a fault in a while."""
        self.world.engine.after(seconds, work, self.process)

    def length(self) -> float:
        """Return how long a cut or pause lasts: short, longer than the lease, longer than the requeue."""
        kind = self.rng.random()
        if self.world.tight and kind > 0.25:
            return self.rng.uniform(67.0, 80.0)
        if kind < 0.4:
            return self.rng.uniform(0.5, 8.0)
        return self.rng.uniform(12.0, 30.0) if kind < 0.5 else self.rng.uniform(32.0, 70.0)

    def a_host(self) -> SimHost:
        """Choose a host, rather one that trains, and best what is moved on silence."""
        hosts = list(self.world.hosts.values())
        busy = [h for h in hosts if h.trainers]
        stops = self.world.checks.stop_policy
        moved = [h for h in busy if any(t.files.job in stops for t in h.trainers)]
        if moved and self.rng.random() < 0.5:
            return self.rng.choice(moved)
        return self.rng.choice(busy if busy and self.rng.random() < 0.8 else hosts)

    def happen(self) -> Thread:
        """Let one thing after the other go wrong; whoever crashed comes back."""
        yield 2.0
        while True:
            if any(self.weights):
                self.rng.choices(self.kinds, self.weights)[0]()
            pause = self.rng.expovariate(1 / self.every)
            while pause > 0:
                step = min(pause, 1.0)
                yield step
                pause -= step
                if self.rng.random() < 0.25:
                    self.restart()

    def restart(self) -> None:
        """Let supervisors start what has died."""
        world = self.world
        for node in world.schedulers:
            if world.rng.random() < 0.8 and not node.machine.frozen:
                node.start()
        if world.rng.random() < 0.8:
            world.api.start()
        for name, host in world.hosts.items():
            works = not host.machine.frozen and name not in self.off
            if works and world.rng.random() < 0.5:
                world.start_agent(name)

    # each fault

    def strike(self, host: SimHost) -> None:
        """Perhaps hit a host just when it begins what it was given."""
        if self._strikes(host):
            self.world.engine.saw("a host was struck at a start")
            hit = self.rng.choice((self.partition, self.pause))
            self.later(self.rng.uniform(0.02, 1.5), lambda: hit(host))

    def strike_launch(self, host: SimHost) -> float:
        """Perhaps let a shim start slowly, and its host be suspended meanwhile. Returns seconds."""
        if not self._strikes(host):
            return 0.0
        self.world.engine.saw("a host was struck at a launch")
        self.later(self.rng.uniform(0.0, 1.0), lambda: self.pause(host, sleeps=True))
        return self.rng.uniform(2.0, 12.0)

    def strike_answer(self, host: SimHost) -> float:
        """Perhaps let the last answer before a cut be on its way for long. Returns seconds."""
        link = self.world.broker.links[host.id]
        stops = self.world.checks.stop_policy
        mine = any(t.files.job in stops for t in host.trainers)
        whole = self.process.alive and mine and link.out and link.back
        if not whole or self.rng.random() >= (0.1 if self.world.tight else 0.1 * self.strikes):
            return 0.0
        self.world.engine.saw("a host was struck at an answer")
        self.partition(host, "out")
        return self.rng.uniform(1.0, 2.9)

    def strike_giving_away(self, host: SimHost) -> None:
        """Perhaps let a host come back just when its attempt was given away, and nobody can write that down for it."""
        often = 10.0 if self.world.tight else 3.0
        if not self._strikes(host, often):
            return
        self.world.engine.saw("a host came back as its attempt was given away")
        self.hang_store()
        self.later(self.rng.uniform(0.0, 1.5), lambda: self._back(host))

    def _strikes(self, host: SimHost, often: float = 1.0) -> bool:
        works = self.process.alive and host.id not in self.off
        return works and self.rng.random() < often * self.strikes

    def _back(self, host: SimHost) -> None:
        self.thaw(host.machine)
        self.heal(host.id)

    def partition(self, host: SimHost | None = None, which: str | None = None) -> None:
        """Cut a host off, in one direction or both."""
        host = host or self.a_host()
        links = self.world.broker.links
        link = links[host.id]
        if not (link.out and link.back) or (self.world.tight and not host.trainers):
            return
        ways = ("both", "both", "out", "out" if self.world.tight else "back")
        which = which or self.rng.choice(ways)
        seconds = self.length()
        link.out, link.back = which not in ("both", "out"), which not in ("both", "back")
        self.note("cut", host.id, which, f"{seconds:.1f}")
        self.world.engine.saw(f"a host was cut off: {which}")
        self.later(seconds, lambda: self.heal(host.id))

    def heal(self, node: str) -> None:
        """Connect a node again."""
        link = self.world.broker.links[node]
        if not (link.out and link.back):
            link.out = link.back = True
            self.note("healed", node)
            self.world.broker.tell_reconnected(node)

    def cut_service(self) -> None:
        """Cut the scheduler or the api off."""
        name = self.rng.choice((*(node.name for node in self.world.schedulers), "api"))
        self._cut(name, min(self.length(), 30.0))

    def _cut(self, name: str, seconds: float) -> None:
        link = self.world.broker.links[name]
        link.out = link.back = False
        self.note("cut", name, f"{seconds:.1f}")
        self.later(seconds, lambda: self.heal(name))

    def usurp(self) -> None:
        """Suspend the leader; the rival that takes over is cut off, so that only the deposed one hears hosts when it wakes."""
        leading = [n for n in self.world.schedulers if n.process.alive and n.lead is not None]
        if len(leading) != 1 or any(n.machine.frozen for n in self.world.schedulers):
            return
        (rival,) = (n for n in self.world.schedulers if n is not leading[0])
        rival.start()
        self.world.engine.saw("a rival was cut off")
        long = (75.0, 85.0) if self.world.tight else (38.0, 50.0)
        self._cut(rival.name, self.rng.uniform(*long))
        # mostly longer than the lead lasts, and too short to find hosts silent
        asleep = (8.6, 11.0) if self.rng.random() < 0.7 else (11.0, 20.0)
        seconds = self.rng.uniform(*asleep)
        self._freeze(leading[0].machine, seconds, sleeps=True)

    def hang_store(self) -> None:
        """Let the broker's store take nothing for a while."""
        seconds = self.rng.uniform(2.0, 12.0)
        self.note("store hangs", f"{seconds:.1f}")
        self.world.engine.saw("the store hung")
        self.world.broker.hung_until = self.world.engine.now + seconds

    def oversleep(self) -> None:
        """Suspend a host that trains until its attempt is given away, and perhaps for longer."""
        stops = self.world.checks.stop_policy
        hosts = self.world.hosts.values()
        mine = [h for h in hosts if any(t.files.job in stops for t in h.trainers)]
        if mine:
            seconds = self.world.limits.requeue_after * self.rng.uniform(1.05, 1.4)
            self.pause(self.rng.choice(mine), sleeps=True, seconds=seconds)

    def pause(
        self,
        host: SimHost | None = None,
        *,
        sleeps: bool | None = None,
        seconds: float | None = None,
    ) -> None:
        """Freeze a whole host."""
        host = host or self.a_host()
        if host.machine.frozen or host.id in self.off:
            return
        self.world.checks.account()
        sleeps = self.rng.random() < 0.4 if sleeps is None else sleeps
        self.world.engine.freeze(host.machine, sleeps=sleeps)
        self.world.paused[host.id] = True
        seconds = seconds or self.length()
        self.note("asleep" if sleeps else "frozen", host.id, f"{seconds:.1f}")
        self.world.engine.saw("a host slept" if sleeps else "a host was frozen")
        self.later(seconds, lambda: self.thaw(host.machine))

    def pause_control(self) -> None:
        """Freeze the scheduler's machine."""
        node = self.rng.choice(self.world.schedulers)
        machine = node.machine
        if not machine.frozen:
            if len(self.world.schedulers) > 1 and node.lead is not None:
                self.world.engine.saw("a leader with a rival was frozen")
            self._freeze(machine, min(self.length(), 60.0), sleeps=self.rng.random() < 0.4)

    def _freeze(self, machine: Machine, seconds: float, *, sleeps: bool) -> None:
        self.world.engine.freeze(machine, sleeps=sleeps)
        self.note("frozen", machine.name, f"{seconds:.1f}")
        self.later(seconds, lambda: self.thaw(machine))

    def thaw(self, machine: Machine) -> None:
        """Let a machine go on."""
        if machine.frozen:
            self.world.checks.account()
            self.note("thawed", machine.name)
            self.world.engine.thaw(machine)

    def kill_agent(self) -> None:
        """Kill an agent; it comes back soon, or a while later."""
        host = self.a_host().id
        agent = self.world.agents[host]
        agent.kill()
        self.world.engine.saw("an agent was killed")
        if self.rng.random() < 0.3:
            self.off.add(host)
            self.later(self.length(), lambda: self.off.discard(host))

    def kill_shim(self) -> None:
        """Kill a shim."""
        host = self.a_host()
        if host.trainers:
            trainer = self.rng.choice(host.trainers)
            self.note("kill shim", host.id, trainer.process.name)
            self.world.engine.saw("a shim was killed")
            host.kill_shim(trainer.files)

    def kill_trainer(self) -> None:
        """Kill a trainer."""
        host = self.a_host()
        if host.trainers:
            trainer = self.rng.choice(host.trainers)
            self.note("kill trainer", host.id, trainer.process.name)
            self.world.engine.saw("a trainer was killed")
            host.signal(trainer, 9)

    def reboot(self) -> None:
        """Cut the power of a host for a while."""
        host = self.a_host()
        if host.id in self.off:
            return
        self.off.add(host.id)
        self.note("power off", host.id)
        self.world.engine.saw("a host lost power")
        self.world.agents[host.id].kill()
        host.lose_power()
        machine = host.machine
        machine.boots += 1
        machine.booted_at = self.world.engine.now
        machine.offset = self.rng.uniform(1.0, 20.0)
        if self.rng.random() < 0.3:
            for files in host.attempts.values():
                files.relay = {}

        def boot() -> None:
            self.off.discard(host.id)
            self.world.start_agent(host.id)

        self.later(self.rng.uniform(1.0, 25.0), boot)

    def kill_scheduler(self) -> None:
        """Kill the scheduler."""
        self.rng.choice(self.world.schedulers).kill()

    def kill_api(self) -> None:
        """Kill the api."""
        self.world.api.kill()

    def stop_broker(self) -> None:
        """Stop the broker; its store may be gone when it comes back."""
        broker = self.world.broker
        if not broker.up:
            return
        broker.up = False
        wipe = self.rng.random() < 0.35
        self.note("broker down", "wiped" if wipe else "")
        self.world.engine.saw("the broker was wiped" if wipe else "the broker was restarted")

        def back() -> None:
            if wipe:
                broker.wipe()
            self.note("broker up")
            broker.restart()

        self.later(self.rng.uniform(0.5, 12.0), back)

    def drain(self) -> None:
        """A user drains a host, or lets it work again."""
        drained = self.rng.random() < 0.5
        self.world.api.drain(self.a_host().id, drained, self.rng.random() < 0.5)

    # the end

    def end(self) -> None:
        """Mend everything; nothing goes wrong from here on."""
        world = self.world
        self.process.alive = False
        broker = world.broker
        broker.loss = broker.copies = broker.delay = broker.late = broker.hung_until = 0.0
        self.crash_chance = world.api.crash_chance = 0.0
        for link in broker.links.values():
            link.out = link.back = True
        self.off.clear()
        for node in world.schedulers:
            node.crash_chance = 0.0
            self.thaw(node.machine)
            node.start()
        world.api.start()
        for name, host in world.hosts.items():
            self.thaw(host.machine)
            world.start_agent(name)
            world.agents[name].crash_chance = 0.0
            world.api.drain(name, False, False)
        if broker.up:
            broker.tell_reconnected()
        else:
            broker.restart()
