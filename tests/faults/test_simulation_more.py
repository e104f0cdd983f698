"""Deterministic simulation, seeds 500 to 999: a file of its own, so that two workers share the load."""

from __future__ import annotations

from tests.faults.simulation.many import keeps_every_promise


def test_every_promise_is_kept() -> None:
    keeps_every_promise(range(500, 1000))
