"""Telemetry: ingest rate, a chart of a million points, and the newest values of 500 jobs.

Usage: python benchmarks/telemetry.py [points]. The baseline stores one SQL row a point and sends every point.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import orjson

from services.api.monitoring.hub import Hub
from services.api.projections.decoding import decoded
from services.api.projections.writing import TelemetryWriter
from services.api.telemetry.database import migrate_telemetry, take_over
from services.api.telemetry.latest import read_latest
from services.api.telemetry.series import ChartQuery, chart
from shared.bus.port import BusMessage
from shared.clock import SystemClock
from shared.db import Database
from shared.events import Envelope, encode
from shared.events.base import EventBase
from shared.events.job import JobAssigned
from shared.events.run import MetricsBatch
from shared.jobs.lifecycle import JobState

AT = datetime(2026, 11, 22, tzinfo=UTC)
LINES = 200
MESSAGES = 50
GOAL_POINTS, GOAL_CHART_MS = 20_000, 100.0


def message(subject: str, event: EventBase, seq: int, stream: str) -> BusMessage:
    """A message as the broker delivers it."""
    headers, body = encode(event, Envelope("id", "/trainyard/bench", AT))
    return BusMessage(subject, headers, body, stream, seq, AT, subject)


def batch(job: str, number: int, names: tuple[str, ...]) -> BusMessage:
    """LINES metric lines."""
    first = number * LINES
    items = tuple(
        {
            "t": 1e9 + step,
            "type": "metric",
            "step": step,
            "epoch": step / 1e5,
            "metrics": {name: math.sin(step / 1000) + step % 7 for name in names},
        }
        for step in range(first, first + LINES)
    )
    event = MetricsBatch(first_seq=first + 1, items=items)
    return message(f"met.h1.{job}.1", event, number + 1, "METRICS")


async def ingest(writer: TelemetryWriter, job: str, names: tuple[str, ...], points: int) -> float:
    """Return points per second of processor time."""
    state = JobState(job=job, job_n=1, attempt=1, host="h1")
    assigned = message(f"job.{job}", JobAssigned(at=AT, state=state), 1, "JOBS")
    await writer.apply("JOBS", decoded([assigned])[0], [], assigned)
    spent = 0.0
    total = points // (LINES * len(names))
    for start in range(0, total, MESSAGES):
        part = [batch(job, n, names) for n in range(start, min(start + MESSAGES, total))]
        began = time.process_time()
        items, _ = decoded(part)
        await writer.apply("METRICS", items, [], part[-1])
        spent += time.process_time() - began
    return points / spent


def times(work: Callable[[], object], count: int = 40) -> tuple[float, float]:
    """Return median and 95th percentile in milliseconds."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1e3)
    return statistics.median(took), sorted(took)[int(count * 0.95)]


def baseline(folder: Path, points: int) -> tuple[float, float]:
    """One row a point, all of them sent: points per second, milliseconds of one chart."""
    database = sqlite3.connect(folder / "rows.db")
    database.execute("CREATE TABLE point (job TEXT, name TEXT, step INTEGER, value REAL)")
    began = time.process_time()
    rows = (("j", "loss", step, math.sin(step / 1000)) for step in range(points))
    database.executemany("INSERT INTO point VALUES (?, ?, ?, ?)", rows)
    database.commit()
    rate = points / (time.process_time() - began)
    began = time.perf_counter()
    orjson.dumps(database.execute("SELECT step, value FROM point ORDER BY step").fetchall())
    return rate, (time.perf_counter() - began) * 1e3


async def main(points: int) -> int:
    """Measure, print, and return 1 when a goal is missed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        database = Database(f"sqlite:///{folder / 't.db'}", synchronous="NORMAL")
        migrate_telemetry(database)
        writer = TelemetryWriter(database, Hub(), SystemClock())
        writer.token = await database.write(lambda s: take_over(s, 0))
        single = await ingest(writer, "j", ("loss",), points)
        several = await ingest(writer, "k", ("loss", "lr", "norm", "epoch", "tps"), points)
        query = ChartQuery(names=("loss",))
        p50, p95 = times(lambda: database.read_now(lambda s: orjson.dumps(chart(s, "j", query))))
        many = [f"x{n}" for n in range(498)] + ["j", "k"]
        newest, _ = times(lambda: database.read_now(lambda s: read_latest(s, many)))
        database.close()
        rate, whole = baseline(folder, points)
    print(f"ingest, 1 value a line:  {single:>10,.0f} points/s of one core (goal {GOAL_POINTS:,})")
    print(f"ingest, 5 values a line: {several:>10,.0f} points/s")
    print(f"chart {points:,} → 2,000: p50 {p50:.1f} ms, p95 {p95:.1f} ms (goal {GOAL_CHART_MS:g})")
    print(f"newest values of 500 jobs: {newest:.1f} ms")
    print(f"baseline, bare rows: {rate:,.0f} points/s; every point sent: {whole:.0f} ms")
    print(f"ratio: chart {whole / p50:.1f} x faster than sending every point")
    return int(min(single, several) < GOAL_POINTS or p95 > GOAL_CHART_MS)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)))
