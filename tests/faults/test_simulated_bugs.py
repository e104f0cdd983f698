"""Each bug that is planted in the product is found by the simulation within 50 seeds."""

from __future__ import annotations

import pytest

from tests.faults.simulation.engine import Violation
from tests.faults.simulation.plants import PLANTS
from tests.faults.simulation.world import simulate

WITHIN = 50


@pytest.mark.parametrize("bug", PLANTS)
def test_a_planted_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTS[bug](monkeypatch)
    for seed in range(WITHIN):
        try:
            simulate(seed)
        except (Violation, AssertionError, ValueError, KeyError) as found:
            print(f"{bug}: seed {seed}: {str(found).splitlines()[0][:150]}")
            return
    pytest.fail(f"{bug}: not found within {WITHIN} seeds")
