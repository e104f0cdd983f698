"""What was measured last, kept in benchmarks/results/ (one JSON a group), and docs/benchmarks.md made from it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.row import Row

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
WORDS = {True: "yes", False: "**no**", None: ""}
HEAD = """\
# Benchmarks

Written by `make bench`; do not edit. Every figure stands beside a baseline measured in the same run, on the same machine.
Figures of one machine are no promise for another: look at the ratios. One group alone: `python benchmarks/run.py --only NAME`.
Latencies are of an otherwise idle machine. See [CONTRIBUTING](../CONTRIBUTING.md).
"""


@dataclass(frozen=True)
class Result:
    """The newest rows of one group, and whether its newest run failed."""

    group: str
    measured: str
    machine: str
    rows: tuple[Row, ...]
    failed: str | None = None


def machine() -> str:
    """Return what the figures depend on, in words."""
    return f"{_processor()}, {os.cpu_count()} cores, {_memory_gib()} GiB, {platform.system()} {platform.release()}, Python {platform.python_version()}, no GPU"


def keep(folder: Path, group: str, rows: Sequence[Row]) -> None:
    """Store the rows of a group measured now."""
    _write(folder, Result(group, f"{datetime.now(UTC):%Y-%m-%d}", machine(), tuple(rows)))


def keep_failure(folder: Path, group: str, why: str) -> None:
    """Note that a group could not be measured; the rows of an earlier run stay."""
    old = load(folder, [group])
    rows, measured = (old[0].rows, old[0].measured) if old else ((), "")
    failed = f"{datetime.now(UTC):%Y-%m-%d}: {why}"
    _write(
        folder, Result(group, measured, old[0].machine if old else machine(), tuple(rows), failed)
    )


def load(folder: Path, groups: Iterable[str]) -> list[Result]:
    """Return what is stored, in the order of `groups`."""
    found = []
    for group in groups:
        path = folder / f"{group}.json"
        if path.exists():
            stored: dict[str, Any] = json.loads(path.read_text())
            rows = tuple(Row(**row) for row in stored.pop("rows"))
            found.append(Result(rows=rows, **stored))
    return found


def render(results: Sequence[Result]) -> str:
    """Return the page."""
    lines = [HEAD]
    for where in dict.fromkeys(result.machine for result in results):
        lines += [f"Machine: {where}.", ""]
        lines += ["| what | Trainyard | baseline | ratio | goal | met | date |"]
        lines += ["|---|---|---|---|---|---|---|"]
        here = [result for result in results if result.machine == where]
        for result in here:
            for row in result.rows:
                cells = (row.what, row.ours, row.baseline, row.ratio, row.goal, WORDS[row.met])
                lines.append("| " + " | ".join((*cells, result.measured)) + " |")
        lines.append("")
        failed = [result for result in here if result.failed]
        lines += [f"`{r.group}` could not be measured on {r.failed}" for r in failed] + [""] * bool(
            failed
        )
    lines += ["## How each figure was measured", ""]
    lines += [f"- {row.what}: {row.note}" for result in results for row in result.rows]
    return "\n".join(lines) + "\n"


def shown(row: Row) -> str:
    """Return a row for the terminal."""
    goal = f"; goal {row.goal}: {'met' if row.met else 'MISSED'}" if row.met is not None else ""
    ratio = f"; ratio {row.ratio}" if row.ratio else ""
    return f"  {row.what}: {row.ours}; baseline {row.baseline}{ratio}{goal}"


def _write(folder: Path, result: Result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(result), indent=2, ensure_ascii=False)
    (folder / f"{result.group}.json").write_text(text + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
