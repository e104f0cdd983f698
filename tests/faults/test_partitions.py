"""A host is cut off from the broker while it trains: nothing stale is stored, nothing is missing after the heal, users read the truth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.stack import Stack
from tests.faults.checker import Observation
from tests.faults.partitions.cuts import Way
from tests.faults.partitions.proxied import ProxiedLine
from tests.faults.partitions.scene import SETTINGS, Case, Scene
from tests.faults.proof import Report

pytestmark = pytest.mark.e2e
KEEP, MOVE = "keep", "stop_and_requeue"
SHORT, LONG, BEYOND = 3.0, 20.0, 22.0
"""Seconds: within the lease, beyond it, and beyond the moment from which a run may be placed elsewhere."""
HEAL = 8.0


def run(
    home: Path, model: Path, seed: int, name: str, cases: list[Case]
) -> tuple[Report, Observation, int]:
    stack = Stack(home, "--no-agent", **SETTINGS)

    def line(_: str) -> ProxiedLine:
        return ProxiedLine(stack, json.loads((home / "run" / "nats.json").read_text())["url"])

    with Scene(stack, line, model, seed, HEAL) as scene:
        scene.set_up(cases)
        scene.cut_all()
        stale = scene.stale_items()
        report, seen = scene.finish(name, seed)
    print(report)
    return report, seen, stale


def test_cuts_of_every_direction_within_and_beyond_the_lease(
    tmp_path: Path, tiny_model: Path, seed: int
) -> None:
    cases = [
        Case(Way.BOTH, KEEP, (SHORT,)),
        Case(Way.TO_BROKER, KEEP, (LONG,)),
        Case(Way.TO_AGENT, KEEP, (LONG,)),
        Case(Way.BOTH, MOVE, (BEYOND,), shared=True),
        Case(Way.BOTH, MOVE, (BEYOND,)),
    ]
    report, seen, stale = run(tmp_path / "home", tiny_model, seed, "partitions", cases)
    assert report.violations == [], str(report)
    fenced = [a for job in seen.jobs for a in job.attempts if a.fenced]
    assert fenced, "the run that moved was given up"
    assert any(len(a.stored) < len(a.logged) for a in fenced), "it went on after the cut"
    assert stale > 0, "and what it said of that was counted"
