"""Agents without trainers, many in one process: each has its key, its connection, heartbeats every 5 s and a watch on `ctl`.

    python benchmarks/agents.py HOME COUNT

What they are told to run they say to have started; `SIGUSR1` ends one run in one place. `<home>/run/agents.json` counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shared.bus import Bus, BusError
from shared.bus.credentials import bus_config
from shared.events.base import Envelope
from shared.events.calls import ControlEntry, Heartbeat, HeartbeatReply, RunReport
from shared.events.run import RunAccepted, RunExited, RunStarted
from shared.ids import new_message_id
from shared.jobs.resources import GpuInfo, HostInventory
from shared.runs import write_atomic_json
from shared.settings import Settings

EVERY = 5.0
DEADLINE = 3.0
MOVING = 7
"""Utilisation differs from one heartbeat to the next, as it does on a host that trains."""


def host_name(number: int) -> str:
    """Return a host's id."""
    return f"bench{number:04d}"


def inventory(host: str, moving: int, held_by: str | None) -> HostInventory:
    """Return what a host with one GPU reports; `moving` is its load in percent, `held_by` the job there."""
    gpu = GpuInfo(
        index=0,
        uuid=f"GPU-{host}",
        name="NVIDIA H100 80GB HBM3",
        memory_mib=81559,
        memory_used_mib=moving * 800,
        utilization=float(moving),
        held_by=held_by,
    )
    return HostInventory(
        hostname=host,
        label=host,
        device="cuda",
        gpus=(gpu,),
        cpu_count=16,
        cpu_percent=float(moving),
        memory_mib=128_000,
        memory_used_mib=moving * 1000,
        disk_free_mib=900_000,
        agent_version="0.1.0",
        python_version="3.11.7",
        packages={"torch": "2.13.0", "transformers": "5.0.0", "trl": "1.16.0"},
        work_dir="~/verl_jobs",
    )


@dataclass
class Counts:
    """What all agents saw."""

    answered: int = 0
    unanswered: int = 0
    started: int = 0
    seconds: list[float] = field(default_factory=list)
    last_started: float = 0.0

    def document(self) -> dict[str, Any]:
        """Return them as stored."""
        waits = sorted(self.seconds[-2000:]) or [0.0]
        return {
            "answered": self.answered,
            "unanswered": self.unanswered,
            "started": self.started,
            "p95": waits[int(len(waits) * 0.95)],
            "last_started": self.last_started,
        }


class Agent:
    """One host with one GPU."""

    def __init__(self, number: int, bus: Bus, counts: Counts) -> None:
        """Take a connection of its own."""
        self.host = host_name(number)
        self.bus = bus
        self.counts = counts
        self.number = number
        self.beats = 0
        self.heard: float | None = None
        self.instance = new_message_id()
        self.run: tuple[str, int] | None = None
        self.seq = 0
        self.done: set[tuple[str, int]] = set()

    async def live(self) -> None:
        """Watch and beat for ever; the first beat comes at this agent's own place within the 5 s."""
        watch = await self.bus.control().watch(f"{self.host}.", self.on_key)
        try:
            await asyncio.sleep(EVERY * (self.number % 500) / 500)
            while True:
                began = time.perf_counter()
                await self.beat()
                await asyncio.sleep(max(0.0, EVERY - (time.perf_counter() - began)))
        finally:
            await watch.close()

    async def beat(self) -> None:
        """Send one heartbeat as the real agent does."""
        self.beats += 1
        moving = (self.beats * MOVING + self.number) % 100
        held = self.run[0] if self.run else None
        runs = (RunReport(job=self.run[0], attempt=self.run[1], alive=True),) if self.run else ()
        began = time.perf_counter()
        message = Heartbeat(
            instance=self.instance,
            boot_id="boot",
            inventory=inventory(self.host, moving, held),
            runs=runs,
            unanswered_seconds=began - (self.heard or began),
        )
        self.heard = self.heard or began
        try:
            await self.bus.request(f"hb.{self.host}", message, HeartbeatReply, timeout=DEADLINE)
        except BusError:
            self.counts.unanswered += 1
        else:
            self.heard = began
            self.counts.answered += 1
            self.counts.seconds.append(time.perf_counter() - began)

    async def on_key(self, key: str, value: bytes | None) -> None:
        """Start what is asked for."""
        if value is None or key.endswith(".epoch"):
            return
        entry = ControlEntry.model_validate_json(value)
        run = (entry.job, entry.attempt)
        if entry.desired != "run" or run in self.done or run == self.run:
            return
        self.counts.last_started = time.time()
        self.run, self.seq = run, 0
        await self.say(RunAccepted, gpus=entry.gpus)
        await self.say(RunStarted, pid=1, boot_id="boot", warm=True)
        self.counts.started += 1

    async def finish(self) -> None:
        """End the run that is here."""
        if self.run is not None:
            await self.say(RunExited, outcome="completed", last_seq={"run": self.seq + 1})
            self.done.add(self.run)
            self.run = None

    async def say(self, kind: type[Any], **fields: Any) -> None:
        """Publish a fact of the run."""
        assert self.run is not None
        self.seq += 1
        fact = kind(seq=self.seq, t=time.time(), **fields)
        identity = new_message_id()
        envelope = Envelope(identity, f"/trainyard/agent/{self.host}", datetime.now(UTC))
        subject = f"run.{self.host}.{self.run[0]}.{self.run[1]}"
        await self.bus.publish(subject, fact, envelope, msg_id=identity, timeout=30)


async def main(home: Path, count: int) -> None:
    """Run the agents until SIGTERM."""
    settings = Settings(home=home)
    counts = Counts()
    stopping, ending = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_signal_handler(signal.SIGUSR1, ending.set)
    agents = [
        Agent(n, await Bus.connect(bus_config(settings, "agent", host_name(n)), 30), counts)
        for n in range(count)
    ]
    tasks = [loop.create_task(agent.live()) for agent in agents]
    ended = 0
    try:
        while not stopping.is_set():
            write_atomic_json(home / "run" / "agents.json", counts.document())
            if ending.is_set():
                ending.clear()
                await agents[ended % count].finish()
                ended += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await stopping.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(agent.bus.close() for agent in agents))


def counted(home: Path) -> dict[str, Any]:
    """Return what the agents of a home counted; empty before they run."""
    try:
        found: dict[str, Any] = json.loads((home / "run" / "agents.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
