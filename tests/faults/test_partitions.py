"""A host is cut off from the broker while it trains: nothing stale is stored, nothing is missing after the heal, users read the truth."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.partitions.cuts import Way
from tests.faults.partitions.runs import Outcome, run
from tests.faults.partitions.scene import Case

pytestmark = pytest.mark.e2e
KEEP, MOVE = "keep", "stop_and_requeue"
SHORT, LONG, BEYOND = 3.0, 20.0, 22.0
"""Seconds: within the lease, beyond it, and beyond the moment from which a run may be placed elsewhere."""
REPEATED = 25
"""Cuts of one run of the repetition; it is done twice."""


def went_on(outcome: Outcome) -> bool:
    """Tell whether every run trained on while its host was cut off."""
    return bool(outcome.trained) and all(b > a for a, b in outcome.trained.values())


@pytest.mark.nightly
def test_cuts_of_every_direction_within_and_beyond_the_lease(
    tmp_path: Path, tiny_model: Path, seed: int
) -> None:
    cases = [
        Case(Way.BOTH, KEEP, (SHORT,)),
        Case(Way.TO_BROKER, KEEP, (LONG,)),
        Case(Way.TO_AGENT, KEEP, (LONG,)),
        Case(Way.BOTH, MOVE, (BEYOND,), shared=True),
    ]
    outcome = run(tmp_path / "home", tiny_model, seed, "partitions", cases)
    assert outcome.report.violations == [], str(outcome.report)
    assert went_on(outcome), str(outcome.trained)
    fenced = [a for job in outcome.seen.jobs for a in job.attempts if a.stored_before is not None]
    assert len(fenced) == 1, "the run that moved to another host was given up"
    assert len(fenced[0].stored) < len(fenced[0].logged), "it went on after the cut"
    assert outcome.stale > 0, "and what it said of that was counted"


@pytest.mark.nightly
@pytest.mark.parametrize("policy", [KEEP, MOVE])
def test_the_whole_matrix(tmp_path: Path, tiny_model: Path, seed: int, policy: str) -> None:
    long = LONG if policy == KEEP else BEYOND
    cases = [Case(way, policy, (SHORT,)) for way in Way]
    cases += [Case(way, policy, (long,), shared=policy == MOVE) for way in Way]
    if policy == MOVE:  # nobody else can read its checkpoint, so it waits for its host
        cases.append(Case(Way.BOTH, policy, (long,)))
    outcome = run(tmp_path / "home", tiny_model, seed, f"matrix, {policy}", cases)
    assert outcome.report.violations == [], str(outcome.report)
    assert went_on(outcome), str(outcome.trained)


@pytest.mark.nightly
@pytest.mark.parametrize("half", [1, 2])
def test_fifty_cuts(tmp_path: Path, tiny_model: Path, seed: int, half: int) -> None:
    rng = random.Random(f"{seed}.{half}")
    cases = []
    for _ in range(5):
        cuts = [
            rng.uniform(0.5, 3.0) if rng.random() < 0.6 else rng.uniform(9, 18) for _ in range(5)
        ]
        cases.append(Case(rng.choice(list(Way)), KEEP, tuple(cuts), pause=12.0))
    outcome = run(tmp_path / "home", tiny_model, seed, f"{REPEATED} cuts", cases, steps=700)
    assert sum(outcome.report.faults.values()) == REPEATED
    assert outcome.report.violations == [], str(outcome.report)
