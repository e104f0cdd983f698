"""200 WebSocket clients on one job, one of which does not read: what that costs the others."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from urllib.parse import urlsplit

from websockets.asyncio.client import connect

from benchmarks.paced import Paced, paced
from benchmarks.row import Row, milliseconds, percentile

CLIENTS = 200
PER_SECOND = 4
GOAL_RATIO = 1.1
"""A p95 within a tenth counts as unchanged: two runs of the same thing differ by that much."""
GOAL_EXTRA_SECONDS = 0.01
SMALL_WINDOW = 4096
"""Receive buffer (bytes) of the client that does not read, so that it is in the way soon."""


def measure(quick: bool) -> list[Row]:
    """The same run twice: all read; all but one read."""
    clients, lines = (20, 20) if quick else (CLIENTS, 200)
    with paced() as stack:
        api = stack.processes()["api"]
        everybody = asyncio.run(_run(stack, clients, lines, stalled=False))
        before = api.memory_info().rss
        others = asyncio.run(_run(stack, clients, lines, stalled=True))
        grown = (api.memory_info().rss - before) / 2**20
    ours, bare = percentile(others, 0.95), percentile(everybody, 0.95)
    return [
        Row(
            f"line → frame for {clients - 1} clients of one job, one more not reading",
            milliseconds(others),
            milliseconds(everybody),
            f"{ours / bare:.3f} (p95)",
            "p95 unchanged",
            ours <= max(bare * GOAL_RATIO, bare + GOAL_EXTRA_SECONDS),
            f"baseline: {clients} clients of the same run, all reading; {PER_SECOND} steps/s with a metric, a progress and a log "
            f"frame each; the clients share one process with one core beside the stack; the api grew by {grown:.0f} MiB meanwhile; "
            "within a tenth or 10 ms counts as unchanged",
        )
    ]


async def _run(stack: Paced, clients: int, lines: int, *, stalled: bool) -> list[float]:
    job = await asyncio.to_thread(stack.submit, lines=lines, per_second=PER_SECOND, lead=5.0)
    delays: list[float] = []
    live = f"{stack.client.url.replace('http', 'ws', 1)}/api/v1/monitoring/{job}/live?since=0"
    async with asyncio.timeout(90 + lines / PER_SECOND):
        deaf = await asyncio.to_thread(_deaf, live) if stalled else None
        try:
            readers = [_read(live, delays) for _ in range(clients - stalled)]
            counts = await asyncio.gather(*readers)
        finally:
            if deaf is not None:
                deaf.close()
    if set(counts) != {lines}:
        raise RuntimeError(f"clients saw {sorted(set(counts))} of {lines} lines")
    return delays


async def _read(url: str, delays: list[float]) -> int:
    """Read to the end; return how many metric lines came."""
    count = 0
    async with connect(url, compression=None) as client:
        async for text in client:
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            frame = json.loads(text)
            if frame["type"] == "metric":
                count += 1
                delays.append(now - frame["data"]["metrics"]["written"])
    return count


def _deaf(url: str) -> socket.socket:
    """Open the feed by hand and never read from it."""
    parts = urlsplit(url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_WINDOW)
    client.settimeout(10)
    client.connect((parts.hostname, parts.port))
    client.sendall(
        f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    if not client.recv(12).startswith(b"HTTP/1.1 101"):
        raise RuntimeError("the feed was not opened")
    return client
