"""The baseline of telemetry: the same bytes through a bare nats-server, published and consumed by nats-py alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import nats
from nats.errors import NoServersError
from nats.js.api import ConsumerConfig

from benchmarks.paced_trainer import metric_record
from shared.bus.embedded import server_binary
from shared.events import Envelope, encode
from shared.events.run import MetricsBatch
from trainyard.stack.ports import free_port

LINES = 256
WINDOW = 256
SUBJECT = "met.raw"


async def points_per_second(points: int, values: int, core: int) -> float:
    """Publish and consume at least `points` points at once; all of it on one core."""
    count = max(1, points // (LINES * values))
    bodies = [_body(number, values) for number in range(min(count, 64))]
    with _server(core) as url:
        client = await _connect(url)
        stream = {
            "name": "RAW", "subjects": [SUBJECT], "storage": "file", "num_replicas": 1,
            "persist_mode": "async", "compression": "s2",
        }  # fmt: skip
        await client.request("$JS.API.STREAM.CREATE.RAW", json.dumps(stream).encode(), timeout=5)
        context = client.jetstream()
        reader = await context.pull_subscribe(
            SUBJECT, stream="RAW", config=ConsumerConfig(ack_policy="none", inactive_threshold=60)
        )
        began = time.perf_counter()

        async def consume() -> None:
            left = count
            while left:
                left -= len(await reader.fetch(min(left, 128), timeout=10))

        consuming = asyncio.create_task(consume())
        for start in range(0, count, WINDOW):
            acks = [
                await context.publish_async(SUBJECT, bodies[n % len(bodies)])
                for n in range(start, min(start + WINDOW, count))
            ]
            await asyncio.gather(*acks)
        await consuming
        took = time.perf_counter() - began
        await client.close()
    return count * LINES * values / took


def _body(number: int, values: int) -> bytes:
    """Return what an agent publishes for LINES lines."""
    first = number * LINES + 1
    items = tuple(metric_record(step, 10**6, values) for step in range(first, first + LINES))
    event = MetricsBatch(first_seq=first, items=items)
    return encode(event, Envelope("raw", "/bench", datetime.now(UTC)))[1]


@contextlib.contextmanager
def _server(core: int) -> Iterator[str]:
    """Run a bare server with the embedded broker's durability, and hold it and this process on `core`."""
    before = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="trainyard-bench-raw-") as folder:
        port = free_port()
        config = Path(folder) / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{port}"\nmax_payload: 8388608\n'
            f'jetstream {{ store_dir: "{folder}/store", sync_interval: always }}\n'
        )
        os.sched_setaffinity(0, {core})
        process = subprocess.Popen([str(server_binary(None)), "-c", str(config), "-l", f"{folder}/log"])  # fmt: skip
        try:
            yield f"nats://127.0.0.1:{port}"
        finally:
            os.sched_setaffinity(0, before)
            process.terminate()
            process.wait(timeout=10)


async def _ignore(_: Exception) -> None:
    """The first tries come before the server listens."""


async def _connect(url: str) -> nats.NATS:
    for _ in range(100):
        with contextlib.suppress(NoServersError, OSError):
            return await nats.connect(
                url, allow_reconnect=False, connect_timeout=1, error_cb=_ignore
            )
        await asyncio.sleep(0.05)
    raise RuntimeError("the bare nats-server did not start")
