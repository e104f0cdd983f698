"""Runs many seeds of the deterministic simulation and says what each cost; a seed alone prints its whole trace.

Usage: python benchmarks/simulate.py [--seeds 10000] [--first 0] [--workers 2] | --seed N
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.faults.simulation.engine import Violation
from tests.faults.simulation.world import Outcome, World, quiet, simulate, story

SHARE = 25


def share(seeds: Iterable[int]) -> tuple[list[Outcome], list[str]]:
    """Run some seeds; return outcomes, and the text of each violation."""
    gc.collect()
    gc.freeze()  # what is imported by now is not looked at with each collection
    outcomes, found = [], []
    for seed in seeds:
        try:
            outcomes.append(simulate(seed))
        except Violation as violation:
            found.append(str(violation))
    return outcomes, found


def one(seed: int) -> int:
    """Print the whole trace of a seed."""
    world = World(seed)
    failed = ""
    with quiet():
        try:
            world.run()
        except Violation as violation:
            failed = str(violation)
    print(story(world.engine, len(world.engine.trace)))
    print(f"seed {seed}: {failed or 'no violation'}")
    return 1 if failed else 0


def many(first: int, count: int, workers: int) -> int:
    """Run seeds on several processes and sum up."""
    began = time.perf_counter()
    shares = [range(s, min(s + SHARE, first + count)) for s in range(first, first + count, SHARE)]
    outcomes: list[Outcome] = []
    violations = 0
    with ProcessPoolExecutor(workers) as pool:
        for done, found in pool.map(share, shares):
            outcomes += done
            violations += len(found)
            for text in found:
                print(text)
    took = time.perf_counter() - began
    hours = sum(o.seconds for o in outcomes) / 3600
    print(f"seeds               {count} ({first} to {first + count - 1}), {workers} workers")
    print(f"violations          {violations}")
    print(f"wall clock          {took:.1f} s, {count / took:.1f} seeds/s")
    print(f"virtual time        {hours:.1f} h, {sum(o.events for o in outcomes)} events")
    print(f"attempts            {sum(o.attempts for o in outcomes)}")
    seen: Counter[str] = Counter()
    for one in outcomes:
        seen.update(dict(one.seen))
    for what, times in sorted(seen.items()):
        print(f"{times:8} times        {what}")
    print(
        f"longest overlap     {max((o.overlap for o in outcomes), default=0.0):.2f} s (a tick is 2 s)"
    )
    return 1 if violations else 0


def main() -> int:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    if given.seed is not None:
        return one(given.seed)
    return many(given.first, given.seeds, given.workers)


if __name__ == "__main__":
    sys.exit(main())
