"""What `make bench-faults` runs: 1,000 random kills, 200 kills during saves, wiped brokers, frozen hosts.

    python benchmarks/faults.py [--kills 1000] [--cuts 200] [--wipes 3] [--freezes 20] [--seed N]

Fails on any broken promise. `--seed` deals the same faults in the same order; when they meet the stack depends on the machine.

A home whose proof failed is kept for a look; the others are removed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.faults.killer import kills_in  # noqa: E402
from tests.faults.pauses import frozen_hosts  # noqa: E402
from tests.faults.proof import cut_saves, kills, wiped_broker  # noqa: E402
from tests.faults.scene import Report  # noqa: E402

ROUND_KILLS, ROUND_SECONDS = 100, 300.0
ROUND_CUTS = 50
ROUND_FREEZES = 4
ROUNDS_AT_MOST = 40
Proof = Callable[[Path, int], Report]


def main() -> int:
    """Run the proofs one after another; 1 if a promise was broken or too few faults could be dealt."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--wipes", type=int, default=3)
    parser.add_argument("--freezes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    options = parser.parse_args()
    rng = random.Random(options.seed)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="trainyard-faults-") as folder:
        model = _model(Path(folder) / "tiny")

        def killing(home: Path, seed: int) -> Report:
            return kills(
                home, model, seed, count=ROUND_KILLS, seconds=ROUND_SECONDS, jobs=20, keep=6,
                pause=0.3, settle=600,
            )  # fmt: skip

        def cutting(home: Path, seed: int) -> Report:
            return cut_saves(home, model, seed, count=ROUND_CUTS, seconds=400)

        def wiping(home: Path, seed: int) -> Report:
            return wiped_broker(home, model, seed)

        def freezing(home: Path, seed: int) -> Report:
            return frozen_hosts(home, model, seed, rounds=ROUND_FREEZES, settle=400)

        def freezes(report: Report) -> int:
            return sum(n for what, n in report.faults.items() if what.startswith("freeze"))

        sound = [
            _until(options.kills, killing, rng, lambda r: kills_in(r.faults)),
            _until(options.cuts, cutting, rng, lambda r: r.faults["cut a save"]),
            _until(options.wipes, wiping, rng, lambda r: r.faults["wipe store"]),
            _until(options.freezes, freezing, rng, freezes),
        ]
    return 0 if all(sound) else 1


def _until(wanted: int, proof: Proof, rng: random.Random, count: Callable[[Report], int]) -> bool:
    """Repeat a proof, each time in a fresh home, until `wanted` faults are dealt; False on a violation."""
    dealt, broken = 0, 0
    for _ in range(ROUNDS_AT_MOST):
        if dealt >= wanted:
            break
        home = Path(tempfile.mkdtemp(prefix="trainyard-faults-"))
        report = proof(home, rng.randrange(1_000_000))
        dealt += count(report)
        broken += len(report.violations)
        print(f"{report}\n  so far {dealt} of {wanted}, {broken} violations", flush=True)
        if report.violations:
            print(f"  kept: {home}", flush=True)
        else:
            shutil.rmtree(home)
    return broken == 0 and dealt >= wanted


def _model(folder: Path) -> Path:
    module = "services.gpu_agent.trainers.model_zoo"
    subprocess.run(
        [sys.executable, "-P", "-m", module, "tiny", "--out", str(folder)],
        check=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    return folder


if __name__ == "__main__":
    sys.exit(main())
