"""Steps per second through the platform over a bare TRL script; bare_sft.py does the measuring in its own process."""

from __future__ import annotations

import json

from benchmarks.embedded import script
from benchmarks.row import Row

GOAL = 0.98


def measure(quick: bool) -> list[Row]:
    """Run both side by side."""
    steps, rounds = ("60", "1") if quick else ("200", "3")
    found = json.loads(script("bare_sft.py", "--steps", steps, "--rounds", rounds, "--json"))
    bare, ours = found["bare TRL"], found["platform"]
    ratio = bare["cpu"] / ours["cpu"]
    return [
        Row(
            "training steps a second, processor time",
            f"{1e3 / ours['cpu']:.1f}/s",
            f"{1e3 / bare['cpu']:.1f}/s",
            f"{ratio:.3f}",
            f"≥ {GOAL}",
            ratio >= GOAL,
            f"baseline: the same TRL script by hand; median step of {steps} in {rounds} rounds; inside the platform's hooks "
            f"{found['hooks']:.3f} ms a step; by wall time the ratio is {bare['wall'] / ours['wall']:.3f}",
        )
    ]
