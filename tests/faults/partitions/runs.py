"""Runs of the scene behind proxies; the suite takes a short one, the nightly proofs the whole matrix."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.stack import Stack
from tests.faults.checker import Observation
from tests.faults.partitions.cases import SETTINGS, Case
from tests.faults.partitions.proxied import ProxiedLine
from tests.faults.partitions.scene import Scene
from tests.faults.scene import NO_ENV, Env, Report

HEAL = 20.0
"""Seconds: a connection that stood still goes on at once; one that was given up is tried again within five, and its machine is busy."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    report: Report
    seen: Observation
    stale: int
    """Items of attempts given up that the api has counted."""
    trained: dict[tuple[str, int], tuple[int, int]]
    """Host and number of the cut → steps that its first attempt had made when the cut came, and when it was over."""


def run(
    home: Path, model: Path, seed: int, name: str, cases: list[Case], *, steps: int = 240,
    env: Env = NO_ENV,
) -> Outcome:  # fmt: skip
    """Run one scene; `env`: further settings of the stack and its hosts."""
    stack = Stack(home, "--no-agent", **SETTINGS, **env)

    def line(_: str) -> ProxiedLine:
        return ProxiedLine(stack, json.loads((home / "run" / "nats.json").read_text())["url"])

    began = time.monotonic()
    with Scene(stack, line, model, seed, HEAL, steps) as scene:
        scene.set_up(cases)
        ready = time.monotonic()
        scene.cut_all()
        healed = time.monotonic()
        report, seen = scene.finish(name, seed)
    print(report)
    print(f"  set up in {ready - began:.0f} s, cut for {healed - ready:.0f} s")
    return Outcome(report, seen, scene.stale, scene.trained)
