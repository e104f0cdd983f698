"""From a metric line that a trainer writes to the frame that a WebSocket client holds, beside polling REST."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field

import httpx2
from websockets.asyncio.client import connect

from benchmarks.paced import Paced, paced
from benchmarks.row import Row, milliseconds, percentile, seconds

GOAL_SECONDS = 0.1
PER_SECOND = 25
POLL_SECONDS = 2.0


@dataclass
class Delays:
    """Seconds from the write of a line to its arrival, by the boot clock that all processes here share."""

    frame: list[float] = field(default_factory=list)
    polled: list[float] = field(default_factory=list)


def measure(quick: bool) -> list[Row]:
    """One run at an idle stack, watched by one client and polled by another."""
    lines = 100 if quick else 1500
    with paced() as stack:
        found = asyncio.run(_watch(stack, lines))
    p95, polled = percentile(found.frame, 0.95), percentile(found.polled, 0.95)
    return [
        Row(
            f"metric line written → WebSocket frame, {PER_SECOND} lines/s",
            milliseconds(found.frame),
            seconds(found.polled),
            f"{p95 / polled:.4f} (p95)",
            f"p95 ≤ {GOAL_SECONDS * 1e3:.0f} ms",
            p95 <= GOAL_SECONDS,
            "trainer, agent, broker, api and client are processes of one machine and share CLOCK_BOOTTIME, which each line "
            f"carries; baseline: another client of the same run polls REST every {POLL_SECONDS:g} s "
            "(LLaMA-Factory and Transformer Lab poll every 2-3 s, the latter a remote host every 15 s)",
        )
    ]


async def _watch(stack: Paced, lines: int) -> Delays:
    found = Delays()
    job = await asyncio.to_thread(stack.submit, lines=lines, per_second=PER_SECOND, lead=1.0)
    async with asyncio.timeout(60 + lines / PER_SECOND):
        polling = asyncio.create_task(_poll(stack.client.url, job, found.polled))
        await _frames(stack.client.url, job, found.frame)
        polling.cancel()
    if len(found.frame) != lines:
        raise RuntimeError(f"{len(found.frame)} frames for {lines} lines")
    return found


async def _frames(url: str, job: str, delays: list[float]) -> None:
    """Note the delay of each metric frame until the feed ends."""
    live = f"{url.replace('http', 'ws', 1)}/api/v1/monitoring/{job}/live?since=0"
    async with connect(live) as socket:
        async for text in socket:
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            frame = json.loads(text)
            if frame["type"] == "metric":
                delays.append(now - frame["data"]["metrics"]["written"])


async def _poll(url: str, job: str, delays: list[float]) -> None:
    """Ask for what is new every POLL_SECONDS, as a page without a push channel does."""
    seen = 0.0
    async with httpx2.AsyncClient(base_url=url) as client:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            query = {"names": "written", "from": seen + 1, "points": 5000}
            answer = await client.get(f"/api/v1/jobs/{job}/metrics", params=query)
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            data = answer.json()
            for step, written in zip(data["x"], data["series"].get("written", []), strict=True):
                seen = max(seen, step)
                delays.append(now - written)
