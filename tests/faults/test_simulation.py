"""Deterministic simulation, the first 500 seeds: every promise is kept, and every kind of fault has really happened.

A failing seed is run again alone by `python benchmarks/simulate.py --seed N`.
"""

from __future__ import annotations

from tests.faults.simulation.many import keeps_every_promise
from tests.faults.simulation.world import simulate


def test_every_promise_is_kept() -> None:
    keeps_every_promise(range(500))


def test_a_seed_names_one_history() -> None:
    assert simulate(7) == simulate(7)
