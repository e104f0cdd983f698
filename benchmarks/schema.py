"""What `make bench-schema` runs: schemathesis against a real api until it has asked 20,000 times; fails on any finding.

    python benchmarks/schema.py [--cases 20000] [--seed N] [--seconds 100]

Half of the runs ask about jobs and hosts that exist, half about anything. A run that found something leaves its report.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.hostile.fuzzing import fuzz  # noqa: E402
from tests.hostile.target import start  # noqa: E402

RUNS_AT_MOST = 40


def main() -> int:
    """Ask; 1 if an answer was wrong or too few could be asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--seconds", type=int, default=100, help="length of one run")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    asked, sound = 0, True
    with tempfile.TemporaryDirectory(prefix="trainyard-schema-") as folder:
        target = start(Path(folder) / "home")
        try:
            for run in range(RUNS_AT_MOST):
                known = run % 2 == 0
                report = fuzz(
                    target, Path(folder) / str(run),
                    seed=options.seed + run, seconds=options.seconds, known=known,
                )  # fmt: skip
                asked += report.cases
                sound = sound and report.sound
                kind = "what exists" if known else "anything"
                said = "sound" if report.sound else "FINDINGS"
                print(f"run {run}: {report.cases} cases of {kind}, {said}", flush=True)
                if not report.sound:
                    print(report.told, flush=True)
                if asked >= options.cases:
                    break
        finally:
            target.stop()
    print(f"{asked} cases, {'no finding' if sound else 'findings above'}")
    return 0 if sound and asked >= options.cases else 1


if __name__ == "__main__":
    sys.exit(main())
