"""A host is cut off from the broker while it trains: nothing stale is stored, nothing is missing after the heal, users read the truth."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.partitions.cases import Break, Case
from tests.faults.partitions.cuts import Way
from tests.faults.partitions.runs import Outcome, run

pytestmark = pytest.mark.e2e
KEEP, MOVE = "keep", "stop_and_requeue"
SHORT = 1.5
"""Seconds: within the lease."""
PATIENCE = 14.0
"""Seconds: longer than the agent waits for the broker to take a message."""
REPEATED = 25
"""Cuts of one run of the repetition; it is done twice."""


def went_on(outcome: Outcome) -> bool:
    """Tell whether every run trained on while its host was cut off."""
    steps: Counter[str] = Counter()
    for (host, _), (before, after) in outcome.trained.items():
        steps[host] += after - before
    return bool(steps) and all(n > 0 for n in steps.values())


def assert_one_was_fenced(outcome: Outcome) -> None:
    """A run that moved to another host was given up; what its host had to say of it later was counted and not stored."""
    fenced = [a for job in outcome.seen.jobs for a in job.attempts if a.stored_before is not None]
    assert len(fenced) == 1, "the run that moved to another host was given up"
    assert len(fenced[0].stored) < len(fenced[0].logged), "it went on after the cut"
    assert outcome.stale > 0, "and what it said of that was counted"


def test_cuts_of_every_direction_within_and_beyond_the_lease(
    tmp_path: Path, tiny_model: Path, seed: int
) -> None:
    stays = Case(KEEP, (Break(Way.BOTH, SHORT), Break(Way.TO_BROKER), Break(Way.TO_AGENT)))
    moves = Case(MOVE, (Break(Way.BOTH),), shared=True)
    outcome = run(tmp_path / "home", tiny_model, seed, "partitions", [stays, moves])
    assert outcome.report.violations == [], str(outcome.report)
    assert went_on(outcome), str(outcome.trained)
    assert_one_was_fenced(outcome)


@pytest.mark.nightly
def test_the_whole_matrix_of_jobs_that_stay(tmp_path: Path, tiny_model: Path, seed: int) -> None:
    short = tuple(Break(way, SHORT) for way in Way)
    long = (*(Break(way) for way in Way), Break(Way.BOTH, PATIENCE))
    cases = [Case(KEEP, short + long), Case(KEEP, long[::-1] + short)]
    outcome = run(tmp_path / "home", tiny_model, seed, "matrix, keep", cases, steps=600)
    assert outcome.report.violations == [], str(outcome.report)
    assert went_on(outcome), str(outcome.trained)
    assert sum(outcome.report.faults.values()) == 2 * (len(short) + len(long))


@pytest.mark.nightly
def test_the_whole_matrix_of_jobs_that_move(tmp_path: Path, tiny_model: Path, seed: int) -> None:
    cases = [Case(MOVE, tuple(Break(way, SHORT) for way in Way))]
    cases += [Case(MOVE, (Break(way),), shared=True) for way in Way]
    cases.append(Case(MOVE, (Break(Way.BOTH),)))  # nobody else can read its checkpoint
    outcome = run(tmp_path / "home", tiny_model, seed, "matrix, stop_and_requeue", cases)
    assert outcome.report.violations == [], str(outcome.report)
    assert went_on(outcome), str(outcome.trained)


@pytest.mark.nightly
@pytest.mark.parametrize("half", [1, 2])
def test_fifty_cuts(tmp_path: Path, tiny_model: Path, seed: int, half: int) -> None:
    rng = random.Random(f"{seed}.{half}")
    cases = []
    for _ in range(5):
        cuts = [
            rng.uniform(0.5, 3.0) if rng.random() < 0.6 else rng.uniform(6, 14) for _ in range(5)
        ]
        way = rng.choice(list(Way))
        cases.append(Case(KEEP, tuple(Break(way, seconds) for seconds in cuts), pause=3.0))
    outcome = run(tmp_path / "home", tiny_model, seed, f"{REPEATED} cuts", cases, steps=900)
    assert sum(outcome.report.faults.values()) == REPEATED
    assert outcome.report.violations == [], str(outcome.report)
