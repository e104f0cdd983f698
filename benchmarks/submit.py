"""Durable `POST /jobs/` by 16 clients beside bare SQLite commits of the same durability."""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.embedded import job, make_model, running
from benchmarks.row import Row

GOAL_RATE = 200


def measure(quick: bool) -> list[Row]:
    """Submit jobs that wait for a host that is not there."""
    count = 100 if quick else 1000
    with running() as (stack, client):
        body = job(make_model(stack.home / "tiny")) | {"host": "nowhere"}
        client.jobs.submit(body)
        started = time.perf_counter()
        with ThreadPoolExecutor(16) as pool:
            made = list(pool.map(lambda _: client.jobs.submit(body).uuid, range(count)))
        rate = count / (time.perf_counter() - started)
        if len(set(made)) != count:
            raise RuntimeError("a submitted job is missing")
        bare = _bare(stack.home, count)
    return [
        Row(
            "durable `POST /api/v1/jobs/`, 16 clients",
            f"{rate:.0f}/s",
            f"{bare:.0f}/s",
            f"{rate / bare:.3f}",
            f"≥ {GOAL_RATE}/s",
            rate >= GOAL_RATE,
            "baseline: bare SQLite, one row a commit, `synchronous=FULL`, no HTTP",
        )
    ]


def _bare(folder: Path, count: int) -> float:
    raw = sqlite3.connect(folder / "raw.db", isolation_level=None)
    raw.execute("PRAGMA journal_mode=WAL")
    raw.execute("PRAGMA synchronous=FULL")
    raw.execute("CREATE TABLE t (a TEXT)")
    started = time.perf_counter()
    for _ in range(count):
        raw.execute("INSERT INTO t VALUES (?)", ("x" * 1000,))
    took = time.perf_counter() - started
    raw.close()
    return count / took
