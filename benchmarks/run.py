"""What `make bench` runs: each figure beside a baseline of the same minute; writes docs/benchmarks.md.

    python benchmarks/run.py [--quick]

Figures of one machine are no promise for another; the ratios are what to look at.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.e2e.stack import Stack, until  # noqa: E402 - the root is on the path only now
from trainyard import Client  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    ours: str
    baseline: str
    note: str


def job(model: Path, steps: int = 1) -> dict[str, Any]:
    """The guide's body with few steps."""
    return {
        "name": "bench",
        "algorithm": "sft",
        "model_path": str(model),
        "train_data_path": "datasets/sales_sft.jsonl",
        "num_gpus": 1,
        "learning_rate": 1e-4,
        "batch_size": 2,
        "num_epochs": 1,
        "max_steps": steps,
        "gradient_checkpointing": False,
    }


def make_model(folder: Path) -> Path:
    """Make the tiny model."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "services.gpu_agent.trainers.model_zoo",
            "tiny",
            "--out",
            str(folder),
        ],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    return folder


def durable_submits(client: Client, model: Path, folder: Path, count: int) -> Row:
    """Durable `POST /jobs/` by 16 clients beside bare SQLite commits of the same durability."""
    body = job(model) | {"host": "nowhere"}
    client.jobs.submit(body)
    started = time.perf_counter()
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: client.jobs.submit(body).uuid, range(count)))
    rate = count / (time.perf_counter() - started)
    if len(set(made)) != count:
        raise SystemExit("a submitted job is missing")
    raw = sqlite3.connect(folder / "raw.db", isolation_level=None)
    raw.execute("PRAGMA journal_mode=WAL")
    raw.execute("PRAGMA synchronous=FULL")
    raw.execute("CREATE TABLE t (a TEXT)")
    started = time.perf_counter()
    for _ in range(count):
        raw.execute("INSERT INTO t VALUES (?)", ("x" * 1000,))
    bare = count / (time.perf_counter() - started)
    raw.close()
    return Row(
        "durable `POST /api/v1/jobs/`, 16 clients",
        f"{rate:.0f}/s",
        f"{bare:.0f}/s",
        "baseline: bare SQLite, one row a commit, `synchronous=FULL`, no HTTP",
    )


def first_step(client: Client, model: Path, count: int) -> tuple[Row, Row]:
    """Submit to first training step and to trainer process, warm, beside the same in a fresh process."""
    steps, starts = [], []
    for _ in range(count):
        began = time.time()
        made = client.jobs.submit(job(model))
        ended = client.jobs.wait(made.uuid, 120, poll=0.05)
        if ended.status != "COMPLETED" or ended.started_at is None:
            raise SystemExit(f"the run failed: {ended.message}")
        data = client.jobs.metrics(made.uuid, ["loss"], x="time")
        steps.append(float(data.x[0] or 0) - began)
        starts.append(ended.started_at.timestamp() - began)
    fresh = []
    for _ in range(2):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "bare_first_step.py"), str(model)],
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        fresh.append(time.perf_counter() - began)
    bare = statistics.median(fresh)
    return (
        Row(
            "submit → first training step (warm)",
            f"median {statistics.median(steps):.2f} s, max {max(steps):.2f} s",
            f"{bare:.2f} s",
            "baseline: the same TRL script as a fresh process, to its end of step 1",
        ),
        Row(
            "submit → trainer process",
            f"median {statistics.median(starts) * 1e3:.0f} ms, max {max(starts) * 1e3:.0f} ms",
            "—",
            f"{count} runs, two clocks of one machine",
        ),
    )


def tool(script: str, *arguments: str) -> str:
    """Run one benchmark script and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    return done.stdout.strip()


def with_stack(work: Callable[[Client, Path, Path], list[Row]]) -> list[Row]:
    """Run `work` against a stack of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stack = Stack(folder)
        client = stack.start()
        try:
            until(
                lambda: any(h.online for h in client.hosts.list()), 30, "the host is online", stack
            )
            return work(client, make_model(folder / "tiny"), folder)
        finally:
            stack.stop()


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    quick = parser.parse_args().quick

    def measure(client: Client, model: Path, folder: Path) -> list[Row]:
        warm = client.jobs.submit(job(model))
        client.jobs.wait(warm.uuid, 120)
        rows = list(first_step(client, model, 3 if quick else 10))
        rows.append(durable_submits(client, model, folder, 100 if quick else 500))
        return rows

    rows = with_stack(measure)
    schedule = tool("schedule.py")
    steps = tool(
        "bare_sft.py", "--steps", "60" if quick else "200", "--rounds", "1" if quick else "3"
    )
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` on {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores, Python {platform.python_version()}, no GPU. Each",
        "figure stands beside a baseline of the same run. See [CONTRIBUTING](../CONTRIBUTING.md) for how to run them.",
        "",
        "| what | Trainyard | baseline | note |",
        "|---|---|---|---|",
        *(f"| {r.what} | {r.ours} | {r.baseline} | {r.note} |" for r in rows),
        "",
        "## Training steps through the platform over a bare TRL script",
        "",
        "```text",
        steps,
        "```",
        "",
        "## One scheduling decision",
        "",
        "```text",
        schedule,
        "```",
        "",
    ]
    PAGE.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
