"""What `make bench` runs: every group of figures, each beside its baseline; writes docs/benchmarks.md.

    python benchmarks/run.py [--only NAME,...] [--quick] [--results DIR] [--page FILE]

A group that fails keeps no other from being measured; the exit status is then 1. Figures of `--quick` are printed, and
kept only where `--results` names another folder.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    algorithms,
    charts,
    first_step,
    fleet,
    ingest,
    lists,
    live_frame,
    page,
    recovery,
    rewards,
    schedule,
    steps,
    submit,
    watchers,
)
from benchmarks.row import Row  # noqa: E402

Measure = Callable[[bool], list[Row]]
GROUPS: dict[str, Measure] = {
    "steps": steps.measure,
    "first_step": first_step.measure,
    "algorithms": algorithms.measure,
    "live_frame": live_frame.measure,
    "watchers": watchers.measure,
    "ingest": ingest.measure,
    "recovery": recovery.measure,
    "submit": submit.measure,
    "schedule": schedule.measure,
    "fleet": fleet.measure,
    "lists": lists.measure,
    "charts": charts.measure,
    "rewards": rewards.measure,
}
"""Name → what measures it, in the order of the page."""


def main(argv: list[str] | None = None) -> int:
    """Measure, store, write the page; 1 when a group failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", help=f"groups, by comma: {', '.join(GROUPS)}")
    parser.add_argument("--quick", action="store_true", help="few repetitions: no figures to keep")
    parser.add_argument("--results", type=Path, default=None, help="folder of the stored figures")
    parser.add_argument("--page", type=Path, default=None, help="the page to write")
    options = parser.parse_args(argv)
    names = options.only.split(",") if options.only else list(GROUPS)
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        parser.error(f"no such group: {', '.join(unknown)}; there are: {', '.join(GROUPS)}")
    kept = not options.quick or options.results is not None
    folder = options.results or page.RESULTS
    failed = [name for name in names if not _one(name, options.quick, folder if kept else None)]
    if kept:
        file = options.page or page.PAGE
        file.write_text(page.render(page.load(folder, GROUPS)))
        print(f"written: {file}")
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _one(name: str, quick: bool, folder: Path | None) -> bool:
    """Measure one group and store it; False when it failed."""
    began = time.monotonic()
    print(f"{name} …", flush=True)
    try:
        rows = GROUPS[name](quick)
    except Exception as error:  # noqa: BLE001 - the other groups are measured all the same
        traceback.print_exc()
        if folder is not None:
            page.keep_failure(folder, name, f"{type(error).__name__}: {error}".splitlines()[0])
        return False
    for row in rows:
        print(page.shown(row), flush=True)
    print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
    if folder is not None:
        page.keep(folder, name, rows)
    return True


if __name__ == "__main__":
    sys.exit(main())
