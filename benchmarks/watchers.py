"""200 WebSocket clients on one job, one of which does not read: what that costs the others."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

from websockets.asyncio.client import connect

from benchmarks.paced import Paced, paced
from benchmarks.row import Row, milliseconds, percentile
from tests.e2e.stack import until

CLIENTS = 200
PER_SECOND = 4
LINES = 60
"""15 s: with the lead shorter than the 30 s after which the api drops a client that does not keep up."""
PREFACE_LINES = 8_000
"""Log lines of 1 KB before the first step: 8 MB that the client which does not read would have to take first."""
LEAD_SECONDS = 13.0
GOAL_RATIO = 1.1
"""A p95 within a tenth counts as unchanged."""
SMALL_WINDOW = 4096
"""Receive buffer (bytes) of the client that does not read."""


def measure(quick: bool) -> list[Row]:
    """The same run with all reading and with one that does not, in turns that begin and end with the former."""
    clients, lines = (20, 20) if quick else (CLIENTS, LINES)
    turns = (False, True) if quick else (False, True, True, False)
    delays: dict[bool, list[list[float]]] = {False: [], True: []}
    with paced() as stack:
        api = stack.processes()["api"]
        before = api.memory_info().rss
        for stalled in turns:
            delays[stalled].append(asyncio.run(_run(stack, clients, lines, stalled=stalled)))
        grown = (api.memory_info().rss - before) / 2**20
    others = [delay for turn in delays[True] for delay in turn]
    everybody = [delay for turn in delays[False] for delay in turn]
    ratio = percentile(others, 0.95) / percentile(everybody, 0.95)
    each = {s: ", ".join(f"{percentile(t, 0.95) * 1e3:.0f}" for t in delays[s]) for s in delays}
    return [
        Row(
            f"line → frame for {clients - 1} clients of one job, one more not reading",
            milliseconds(others),
            milliseconds(everybody),
            f"{ratio:.3f} (p95)",
            "p95 unchanged",
            ratio <= GOAL_RATIO,
            f"baseline: {clients} clients of such a run, all reading; in turns (p95 of each: {each[False]} ms all reading, {each[True]} "
            f"ms with one not); {PER_SECOND} steps/s with a metric, a progress and a log frame each; the one that does not read asks "
            "for 8 MB of log first and leaves the api's socket full; all clients share one process beside the stack; the api grew by "
            f"{grown:.0f} MiB in all; within a tenth counts as unchanged",
        )
    ]


async def _run(stack: Paced, clients: int, lines: int, *, stalled: bool) -> list[float]:
    plan = {
        "lines": lines,
        "per_second": PER_SECOND,
        "preface": PREFACE_LINES,
        "lead": LEAD_SECONDS,
    }
    job = await asyncio.to_thread(stack.submit, **plan)
    live = f"{stack.client.url.replace('http', 'ws', 1)}/api/v1/monitoring/{job}/live"
    delays: list[float] = []
    async with asyncio.timeout(90 + lines / PER_SECOND):
        await asyncio.to_thread(_wait_for_preface, stack, job)
        deaf = await asyncio.to_thread(_deaf, f"{live}?since=0") if stalled else None
        try:
            readers = [_read(live, delays) for _ in range(clients - stalled)]
            watching = asyncio.gather(*readers)
            await asyncio.sleep(LEAD_SECONDS + lines / PER_SECOND / 2)
            if deaf is not None and not _is_full(deaf):
                raise RuntimeError("the client that does not read is in nobody's way")
            counts = await watching
        finally:
            if deaf is not None:
                deaf.close()
    if set(counts) != {lines}:
        raise RuntimeError(f"clients saw {sorted(set(counts))} of {lines} lines")
    return delays


def _wait_for_preface(stack: Paced, job: str) -> None:
    def there() -> bool:
        last = stack.client.call("GET", f"/api/v1/jobs/{job}/logs", params={"limit": 1})
        lines = last["items"] if isinstance(last, dict) else last
        return bool(lines) and f"{PREFACE_LINES - 1} ." in lines[-1]["message"]

    until(there, 30, "the preface is stored", stack.stack)


def _is_full(deaf: socket.socket) -> bool:
    """Tell whether bytes for this client wait in the kernel at the api's end."""
    port = deaf.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, _, queues = line.split()[:5]
        if int(remote.split(":")[1], 16) == port:
            return int(queues.split(":")[0], 16) > 0
    return False


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
