"""What the relay says reaches the broker and nothing comes back: a checkpoint stays behind the metrics that led to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from services.gpu_agent.facts import RunStarted
from services.gpu_agent.layout import JobFiles
from services.gpu_agent.relay import LANES, Relay
from services.gpu_agent.spool import AttemptSpool
from shared.bus import Bus
from shared.bus.credentials import bus_config
from shared.bus.port import BusMessage
from shared.clock import SystemClock
from tests.conftest import BusFor, RunningBroker, eventually
from tests.faults.partitions.cuts import Way
from tests.faults.partitions.proxy import StallingProxy

pytestmark = pytest.mark.integration
HOST = "box1"


@pytest.fixture
def proxy(broker: RunningBroker) -> Iterator[StallingProxy]:
    where = urlsplit(broker.url)
    assert where.hostname is not None
    assert where.port is not None
    with StallingProxy(where.hostname, where.port) as running:
        yield running


@pytest.fixture
async def relay(broker: RunningBroker, streams: None, proxy: StallingProxy) -> AsyncIterator[Relay]:
    await broker.add_host(HOST)
    settings = broker.settings.model_copy(update={"nats_url": f"nats://127.0.0.1:{proxy.port}"})
    bus = await Bus.connect(bus_config(settings, "agent", HOST), timeout=10)
    running = Relay(HOST, SystemClock())
    tasks = [asyncio.create_task(running.run_reader())]
    tasks += [asyncio.create_task(running.run_lane(lane, bus)) for lane in LANES]
    yield running
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    proxy.heal()
    await bus.close()


class Stored:
    """What a stream holds, read over a line that is never cut."""

    def __init__(self, bus: Bus, stream: str) -> None:
        self.bus = bus
        self.stream = stream

    async def messages(self) -> list[BusMessage]:
        count = (await self.bus.stream_state(self.stream)).messages
        if not count:
            return []
        reader = await self.bus.reader(self.stream, after=0, epoch=None)
        found: list[BusMessage] = []
        try:
            while len(found) < count:
                found += await reader.fetch(256, timeout=1.0)
        finally:
            await reader.close()
        return found

    async def has(self, text: str) -> BusMessage | None:
        return next((m for m in await self.messages() if text.encode() in m.data), None)


def spool_of(folder: Path, job: str) -> AttemptSpool:
    files = JobFiles(folder / job)
    files.attempt(1).root.mkdir(parents=True)
    return AttemptSpool(files, 1, now=SystemClock().boot())


def write(spool: AttemptSpool, kind: str, step: int) -> None:
    with spool.files.events.open("a") as file:
        line = {"type": kind, "t": 1.0, "step": step, "path": "p", "mark": f"{kind} {step}"}
        file.write(json.dumps(line) + "\n")


async def test_a_checkpoint_does_not_overtake_metrics_whose_acknowledgements_are_lost(
    tmp_path: Path, relay: Relay, proxy: StallingProxy, bus_for: BusFor
) -> None:
    api = await bus_for("api")
    runs, metrics = Stored(api, "RUNS"), Stored(api, "METRICS")
    trains = spool_of(tmp_path, "job1")
    relay.add(trains)
    write(trains, "metric", 1)
    await eventually(lambda: trains.published()["met"] == 1)
    proxy.cut(Way.TO_AGENT)
    write(trains, "metric", 2)
    await eventually(lambda: metrics.has("metric 2"))  # it is there, and the agent does not know
    write(trains, "metric", 3)
    write(trains, "checkpoint", 3)
    await eventually(lambda: trains.streams["run"].read.seq == 1)
    other = spool_of(tmp_path, "job2")
    other.facts.append(RunStarted(seq=0, t=1.0, pid=1, boot_id="b", warm=True))
    relay.add(other)
    await eventually(lambda: runs.has("run.started.v1"), 30)  # the lane of facts goes on
    assert await runs.has("run.checkpoint.v1") is None
    assert await metrics.has("metric 3") is None
    proxy.heal()
    await eventually(lambda: runs.has("run.checkpoint.v1"), 30)
    told, led = await runs.has("run.checkpoint.v1"), await metrics.has("metric 3")
    assert told is not None
    assert led is not None
    assert led.time < told.time
