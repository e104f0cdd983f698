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
        self.crash_chance = rng.choice((0.0, 0.0, 0.004, 0.02))
        for node in world.schedulers:
            node.crash_chance = self.crash_chance
        world.api.crash_chance = self.crash_chance
        self.every = rng.choice((4.0, 8.0, 15.0))
        kinds: list[tuple[float, Callable[[], None]]] = [
            (8.0, self.partition), (1.0, self.cut_service), (3.0, self.pause),
            (0.5, self.pause_control), (2.0, self.kill_agent), (0.7, self.kill_shim),
            (1.5, self.kill_trainer), (1.0, self.reboot), (1.0, self.kill_scheduler),
            (1.0, self.kill_api), (1.0, self.stop_broker), (0.5, self.drain),
        ]  # fmt: skip
        self.off: set[str] = set()
        """Hosts without power, or without an agent for now."""
        self.kinds = [work for _, work in kinds]
        self.weights = [weight * rng.choice((0.0, 1.0, 1.0, 3.0)) for weight, _ in kinds]
        self.strikes = rng.choice((0.0, 0.1, 0.3))
        if world.tight:
            # long silence is what these are about: cut off, frozen, and little else
            quiet_ones = (self.partition, self.pause)
            self.weights = [
                min(w, 1.0) if k in quiet_ones else w * 0.05
                for w, (_, k) in zip(self.weights, kinds, strict=True)
            ]
            self.weights[0] += 8.0
            self.every = 7.0
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
        if self.process.alive and self.rng.random() < self.strikes:
            self.world.engine.saw("a host was struck at a start")
            hit = self.rng.choice((self.partition, self.pause))
            self.later(self.rng.uniform(0.02, 1.5), lambda: hit(host))

    def partition(self, host: SimHost | None = None) -> None:
        """Cut a host off, in one direction or both."""
        host = host or self.a_host()
        links = self.world.broker.links
        link = links[host.id]
        if not (link.out and link.back):
            return
        if self.world.tight and not all(links[h].out for h in self.world.hosts):
            return  # what is lost here is to begin elsewhere at once
        which = self.rng.choice(("both", "both", "out", "out" if self.world.tight else "back"))
        seconds = self.length()
        link.out, link.back = which not in ("both", "out"), which not in ("both", "back")
        self.note("cut", host.id, which, f"{seconds:.1f}")
        self.world.engine.saw(f"a host was cut off: {which}")

        def heal() -> None:
            link.out = link.back = True
            self.note("healed", host.id)
            self.world.broker.tell_reconnected(host.id)

        self.later(seconds, heal)

    def cut_service(self) -> None:
        """Cut the scheduler or the api off."""
        name = self.rng.choice((*(node.name for node in self.world.schedulers), "api"))
        link = self.world.broker.links[name]
        link.out = link.back = False
        seconds = min(self.length(), 30.0)
        self.note("cut", name, f"{seconds:.1f}")

        def heal() -> None:
            link.out = link.back = True
            self.note("healed", name)
            self.world.broker.tell_reconnected(name)

        self.later(seconds, heal)

    def pause(self, host: SimHost | None = None) -> None:
        """Freeze a whole host."""
        host = host or self.a_host()
        if host.machine.frozen or host.id in self.off:
            return
        self.world.checks.account()
        sleeps = self.rng.random() < 0.4
        self.world.engine.freeze(host.machine, sleeps=sleeps)
        self.world.paused[host.id] = True
        seconds = self.length()
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
            self.world.engine.freeze(machine, sleeps=self.rng.random() < 0.4)
            seconds = min(self.length(), 60.0)
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
        broker.loss = broker.copies = broker.delay = broker.late = 0.0
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
