"""Durable `POST /jobs/` by 16 clients beside bare SQLite commits of the same durability."""

from __future__ import annotations

import http.client
import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.embedded import job, make_model, running
from benchmarks.row import Row

GOAL_RATE = 200
CLIENTS = 16


def measure(quick: bool) -> list[Row]:
    """Submit jobs that wait for a host that is not there; scheduler and projection take them in meanwhile."""
    count = 160 if quick else 1600
    with running() as (stack, client):
        body = job(make_model(stack.home / "tiny")) | {"host": "nowhere"}
        client.jobs.submit(body)
        share = count // CLIENTS
        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            made = list(pool.map(lambda _: _submit(client.url, body, share), range(CLIENTS)))
        rate = count / (time.perf_counter() - started)
        if len({uuid for some in made for uuid in some}) != count:
            raise RuntimeError("a submitted job is missing")
        bare = count / sum(bare_commits(stack.home, count))
    return [
        Row(
            f"durable `POST /api/v1/jobs/`, {CLIENTS} clients",
            f"{rate:.0f}/s",
            f"{bare:.0f}/s",
            f"{rate / bare:.3f}",
            f"≥ {GOAL_RATE}/s",
            rate >= GOAL_RATE,
            f"{count} jobs to a whole stack, clients and stack on the same machine; baseline: bare SQLite, one row a commit, "
            "`synchronous=FULL`, no HTTP",
        )
    ]


def _submit(url: str, body: dict[str, Any], count: int) -> list[str]:
    """Submit over one kept connection of the standard library, which costs the machine least; return the uuids."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    data = json.dumps(body)
    made = []
    for _ in range(count):
        connection.request("POST", "/api/v1/jobs/", data, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        text = reply.read()
        if reply.status != 201:
            raise RuntimeError(f"{reply.status}: {text[:300]!r}")
        made.append(str(json.loads(text)["uuid"]))
    connection.close()
    return made


def bare_commits(folder: Path, count: int) -> list[float]:
    """Return the seconds of each commit of one row of 1,000 bytes with `synchronous=FULL`, no service around it."""
    raw = sqlite3.connect(folder / "raw.db", isolation_level=None)
    raw.execute("PRAGMA journal_mode=WAL")
    raw.execute("PRAGMA synchronous=FULL")
    raw.execute("CREATE TABLE t (a TEXT)")
    found = []
    for _ in range(count):
        began = time.perf_counter()
        raw.execute("INSERT INTO t VALUES (?)", ("x" * 1000,))
        found.append(time.perf_counter() - began)
    raw.close()
    return found
