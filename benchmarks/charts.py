"""Charts of 2,000 points from a series of 1,000,000 over REST, beside the same column read raw; several series, and a live tail."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import numpy as np

from benchmarks.population import LINES, body, metrics_batch, open_home, submit_all, write_metrics
from benchmarks.processes import api, broker, timed, until
from benchmarks.row import Row, milliseconds, percentile
from shared.bus import Bus
from shared.bus.credentials import bus_config
from shared.events import Envelope
from shared.events.job import JobAssigned
from shared.jobs.lifecycle import JobState
from shared.settings import Settings

GOAL_MS = 100.0
ONE = ("loss",)
SEVERAL = ("loss", "learning_rate", "grad_norm", "epoch_time", "tokens_per_second")
SEVERAL_POINTS = 200_000
HOST = "bench0000"
LIVE_RATE = 20
"""Batches of LINES metric lines a second while the tail is read: 4,000 points a second."""


def measure(quick: bool) -> list[Row]:
    """Fill the telemetry of two jobs, then read charts from the api's own process."""
    points = 100_000 if quick else 1_000_000
    times = 10 if quick else 60
    with tempfile.TemporaryDirectory(prefix="trainyard-bench-") as name:
        home = Path(name)
        services = open_home(home)
        one, several, live = submit_all(services, (body(i, host="nowhere") for i in range(3)))
        write_metrics(services, one, ONE, points)
        write_metrics(services, several, SEVERAL, SEVERAL_POINTS // (10 if quick else 1))
        services.main.close()
        services.telemetry.close()
        raw = raw_column(home / "api" / "telemetry.db", one)
        with broker(home, (HOST,)):
            process, client = api(home)
            with process, contextlib.closing(client):
                whole = timed(lambda: chart(client, one, "names=loss"), times)
                by_time = timed(lambda: chart(client, one, "names=loss&x=time"), times)
                part = timed(lambda: chart(client, one, f"names=loss&from={points // 2}"), times)
                many = timed(lambda: chart(client, several, ""), times)
                bare = timed(raw, times)
                tail, seen = live_tail(home, client, live, times)
    rows = [
        row(f"chart, {points:,} → 2,000 points, 1 series", whole, bare, True),
        row("the same against time", by_time, bare, None),
        row("the same, later half", part, bare, None),
        row(f"chart, {len(SEVERAL)} series of {SEVERAL_POINTS:,} → 2,000", many, bare, None),
        row(
            f"chart of a live series while {LIVE_RATE * LINES:,} points/s arrive", tail, bare, None
        ),
    ]
    print(f"  live series: {seen:,} points at its end")
    return rows


def row(what: str, ours: list[float], bare: list[float], goal: bool | None) -> Row:
    """Return the line of one kind of chart."""
    p95 = percentile(ours, 0.95) * 1e3
    return Row(
        what,
        milliseconds(ours),
        milliseconds(bare),
        f"{percentile(ours, 0.5) / percentile(bare, 0.5):.1f} x the time",
        f"p95 ≤ {GOAL_MS:.0f} ms" if goal else "",
        p95 <= GOAL_MS if goal else None,
        "GET …/metrics of the api's own process until the last byte; baseline: step and value of the 1,000,000 points "
        "read from the same SQLite file into numpy arrays, nothing reduced, no HTTP",
    )


def chart(client: httpx2.Client, job: str, query: str) -> int:
    """Read one chart and return its bytes."""
    reply = client.get(f"/api/v1/jobs/{job}/metrics?{query}")
    if reply.status_code != 200:
        raise RuntimeError(reply.text[:300])
    return len(reply.content)


def raw_column(path: Path, job: str) -> Callable[[], object]:
    """Return a reading of one whole series without a service."""
    connection = sqlite3.connect(path)
    job_id = connection.execute("SELECT id FROM job_live WHERE job = ?", (job,)).fetchone()[0]
    query = (
        "SELECT step, value FROM metric_chunk WHERE job_id = ? AND name = 'loss' ORDER BY first_seq"
    )

    def read() -> int:
        rows = connection.execute(query, (job_id,)).fetchall()
        step = np.concatenate([np.frombuffer(row[0], "<f8") for row in rows])
        value = np.concatenate([np.frombuffer(row[1], "<f8") for row in rows])
        return len(step) + len(value)

    return read


def live_tail(home: Path, client: httpx2.Client, job: str, times: int) -> tuple[list[float], int]:
    """Read a series' chart while its host sends more of it over the broker; return seconds and the points it then had."""
    stopping = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lambda: asyncio.run(_send(home, job, stopping)))
        try:
            until(
                lambda: sending.done() or raw_count(client, job) > 10 * LINES,
                60,
                "the series grows",
            )
            found = timed(lambda: chart(client, job, "names=loss"), times)
        finally:
            stopping.set()
        sending.result(30)
    return found, raw_count(client, job)


def raw_count(client: httpx2.Client, job: str) -> int:
    """Return how many points a series has."""
    return int(client.get(f"/api/v1/jobs/{job}/metrics?names=loss&points=1").json()["raw_count"])


async def _send(home: Path, job: str, stopping: threading.Event) -> None:
    """Be the scheduler that assigned the job, then the host that runs it."""
    settings = Settings(home=home)
    scheduler = await Bus.connect(bus_config(settings, "scheduler"), 10)
    host = await Bus.connect(bus_config(settings, "agent", HOST), 10)
    try:
        state = JobState(job=job, job_n=1, req_n=1, attempt=1, host=HOST)
        first = envelope("assigned")
        await scheduler.publish(
            f"job.{job}", JobAssigned(at=first.time, state=state), first, msg_id="assigned"
        )
        number = 0
        due = time.monotonic()
        while not stopping.is_set():
            await host.publish(
                f"met.{HOST}.{job}.1",
                metrics_batch(number, ONE),
                envelope(f"b{number}"),
                msg_id=f"b{number}",
                timeout=20,
            )
            number += 1
            due += 1 / LIVE_RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
    finally:
        await host.close()
        await scheduler.close()


def envelope(identity: str) -> Envelope:
    """Return an envelope of now."""
    return Envelope(identity, "/trainyard/bench", datetime.now(UTC))
