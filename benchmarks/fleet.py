"""10,000 queued jobs on 500 agents that beat over the real broker: shares of a core, events with SQL, a killed scheduler."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from benchmarks.agents import counted, host_name
from benchmarks.decisions import Times, measure_events
from benchmarks.population import body, open_home, submit_all
from benchmarks.processes import Process, api, broker, service, until
from benchmarks.row import Row, percentile, seconds
from benchmarks.submit import bare_commits

ROOT = Path(__file__).resolve().parent.parent
GOAL_RESTART_SECONDS, GOAL_EVENT_SECONDS, GOAL_SHARE = 5.0, 0.005, 50.0
READ_ALL = """
import json, sqlite3, sys
rows = sqlite3.connect(sys.argv[1]).execute("SELECT state, data FROM jobs WHERE NOT ended").fetchall()
print(len([(json.loads(state), json.loads(data)) for state, data in rows]))
"""


def measure(quick: bool) -> list[Row]:
    """Fill the cluster, watch it beat, kill its scheduler, then step through events on its database."""
    jobs, hosts, watched, kills = (1_000, 50, 5.0, 1) if quick else (10_000, 500, 20.0, 3)
    with tempfile.TemporaryDirectory(prefix="trainyard-bench-") as name:
        home = Path(name)
        services = open_home(home)
        submit_all(services, (body(i) for i in range(jobs)))
        services.main.close()
        services.telemetry.close()
        with broker(home, [host_name(n) for n in range(hosts)]) as bus:
            process, client = api(home)
            with process, contextlib.closing(client), agents(home, hosts) as fleet:
                scheduler = service(home, "services.scheduler")
                try:
                    settle(home, client, jobs, hosts)
                    parts = {"scheduler": scheduler, "broker": bus, "api": process}
                    before = counted(home)
                    shares = cpu_shares(parts, watched)
                    beats = counted(home)["answered"] - before["answered"]
                    unanswered = counted(home)["unanswered"] - before["unanswered"]
                    waits = counted(home)["p95"]
                    restarts = []
                    for _ in range(kills):
                        scheduler.stop(signal.SIGKILL)
                        os.kill(fleet.popen.pid, signal.SIGUSR1)
                        time.sleep(1.0)
                        scheduler, took = restarted(home)
                        restarts.append(took)
                        time.sleep(watched / 4)
                finally:
                    scheduler.stop()
                floor = echo_share(home, watched)
        raw = [read_all(home) for _ in range(3)]
        events = measure_events(home, 20 if quick else 200)
        bare = bare_commits(home, 200)
    rate = beats / watched
    return [
        Row(
            f"{hosts} agents beating, {rate:.0f} heartbeats/s: share of a core",
            f"scheduler {shares['scheduler']:.0f} % (broker {shares['broker']:.0f} %, api {shares['api']:.0f} %)",
            f"{floor:.0f} %",
            f"{shares['scheduler'] / max(floor, 0.1):.1f}",
            f"≤ {GOAL_SHARE:g} %",
            shares["scheduler"] <= GOAL_SHARE,
            f"with {jobs:,} queued jobs; {unanswered} unanswered, p95 of an answer {waits * 1e3:.0f} ms; baseline: a process that "
            "answers each heartbeat with a constant, on the same broker",
        ),
        Row(
            f"killed scheduler, {jobs:,} jobs, {hosts} hosts: start → first decision",
            seconds(restarts),
            seconds(raw),
            f"{percentile(restarts, 0.5) / percentile(raw, 0.5):.1f} x the time",
            f"≤ {GOAL_RESTART_SECONDS:g} s",
            max(restarts) <= GOAL_RESTART_SECONDS,
            "kill -9; a run ends meanwhile; from the start of the new process until the next job's assignment is committed; "
            "baseline: a Python process that reads the same rows and parses their JSON",
        ),
        *event_rows(events, bare, jobs, hosts),
    ]


def event_rows(events: Times, bare: list[float], jobs: int, hosts: int) -> list[Row]:
    """Return a line for each kind of event."""
    return [
        Row(
            f"{event}: to its stored decisions, {jobs:,} jobs, {hosts} hosts",
            fine(values),
            fine(bare),
            f"{percentile(values, 0.5) / percentile(bare, 0.5):.1f} x the time",
            f"p50 ≤ {GOAL_EVENT_SECONDS * 1e3:g} ms",
            percentile(values, 0.5) <= GOAL_EVENT_SECONDS,
            "the scheduler's desk on its database: the step, where it may change who goes where the next decision, and one "
            "transaction (`synchronous=FULL`; a heartbeat that changes nothing needs none); baseline: a commit of one row to a "
            "bare SQLite file on the same disk",
        )
        for event, values in events.items()
    ]


def fine(values: list[float]) -> str:
    """Return milliseconds with a digit behind the point."""
    p50, p95 = percentile(values, 0.5) * 1e3, percentile(values, 0.95) * 1e3
    return f"p50 {p50:.1f} ms, p95 {p95:.1f} ms (n={len(values)})"


@contextmanager
def agents(home: Path, count: int) -> Iterator[Process]:
    """Run the agents of a home."""
    argv = [sys.executable, str(ROOT / "benchmarks" / "agents.py"), str(home), str(count)]
    with Process(home, argv, "agents") as process:
        yield process


def settle(home: Path, client: httpx2.Client, jobs: int, hosts: int) -> None:
    """Wait until every job is known, every GPU busy, and the api has read it all."""
    until(lambda: rows(home, "SELECT count(*) FROM jobs") >= jobs, 300, "every job is queued", 0.5)
    until(lambda: counted(home).get("started", 0) >= hosts, 300, "every host has a run", 0.5)
    until(lambda: in_status(client, "RUNNING") >= hosts, 300, "the api knows them", 0.5)
    told = "SELECT count(*) FROM outbox WHERE published IS NULL"
    until(lambda: rows(home, told) == 0, 120, "everything is published", 0.5)
    until(lambda: lag(client) <= 20, 300, "the api has read it", 2.5)


def in_status(client: httpx2.Client, status: str) -> int:
    """Return how many jobs the api shows in a status."""
    return int(client.get("/api/v1/jobs/?limit=1").json()["counts"][status])


def lag(client: httpx2.Client) -> float:
    """Return how many messages the api has still to apply."""
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("trainyard_projection_lag_messages{")]
    return sum(float(line.rpartition(" ")[2]) for line in found) if found else 1e9


def cpu_shares(parts: dict[str, Process], wait: float) -> dict[str, float]:
    """Return percent of a core that each process takes during `wait` seconds."""
    began = {name: process.cpu_seconds() for name, process in parts.items()}
    at = time.perf_counter()
    time.sleep(wait)
    took = time.perf_counter() - at
    return {name: (p.cpu_seconds() - began[name]) / took * 100 for name, p in parts.items()}


def echo_share(home: Path, wait: float) -> float:
    """Return percent of a core that answering the same heartbeats with a constant takes."""
    argv = [sys.executable, str(ROOT / "benchmarks" / "echo.py"), str(home)]
    with Process(home, argv, "echo") as process:
        before = counted(home)["answered"]
        until(lambda: counted(home)["answered"] > before + 50, 30, "heartbeats are answered")
        return cpu_shares({"echo": process}, wait / 2)["echo"]


def restarted(home: Path) -> tuple[Process, float]:
    """Start the scheduler; return it, and the seconds until it has assigned a job."""
    newest = "SELECT coalesce(max(rowid), 0) FROM attempts"
    before = rows(home, newest)
    process = service(home, "services.scheduler")
    until(lambda: rows(home, newest) > before, 60, "a decision")
    return process, time.perf_counter() - process.began


def rows(home: Path, query: str) -> int:
    """Ask the scheduler's database for a number; 0 before there is one."""
    try:
        with contextlib.closing(sqlite3.connect(home / "scheduler.db", timeout=5)) as connection:
            return int(connection.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def read_all(home: Path) -> float:
    """Return the seconds that a fresh process needs to read the queued jobs from SQLite and parse them."""
    began = time.perf_counter()
    argv = [sys.executable, "-c", READ_ALL, str(home / "scheduler.db")]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    if not json.loads(done.stdout):
        raise RuntimeError("there are no jobs")
    return time.perf_counter() - began
