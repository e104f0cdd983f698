"""The judge of what users read reports every planted violation, and nothing where nothing is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.partitions.cuts import Cut, Way
from tests.faults.partitions.reading import FrameSeen, LogSeen, Reading, Seen, State, Terms, judge

TERMS = Terms(silent_after=6, beat=1, late=2, late_deaf=8, heal=5, requeue_after=18)
RUNNING, CUT_OFF, DONE = (
    ("RUNNING", None, 1),
    ("RUNNING", "disconnected", 1),
    ("COMPLETED", None, 1),
)
KEPT = [(0, ("PENDING", None, 0)), (2, RUNNING), (17, CUT_OFF), (32, RUNNING), (40, DONE)]
MOVED = [
    (0, ("PENDING", None, 0)), (2, RUNNING), (17, CUT_OFF), (28.5, ("PENDING", "host_lost", 1)),
    (29, ("PENDING", "assigned", 2)), (33, ("RUNNING", None, 2)), (40, ("COMPLETED", None, 2)),
]  # fmt: skip


def reading(states: list[tuple[float, State]], policy: str = "keep", **changes: Any) -> Reading:
    reads = []
    for tenth in range(410):
        at = tenth / 10
        status, reason, attempt = [s for t, s in states if t <= at][-1]
        reads.append(Seen(at - 0.02, at, status, reason, attempt, "box", min(tenth, 400)))
    frames = [
        FrameSeen(
            at + 0.01, 10 * n + 1, "status", json.dumps({"status": s, "reason": r, "attempt": a})
        )
        for n, (at, (s, r, a)) in enumerate(states)
    ]
    frames += [FrameSeen(at + 0.02, 10 * n + 2, "metric", "{}") for n, (at, _) in enumerate(states)]
    frames.sort(key=lambda f: f.seq)
    found = Reading(
        "job", policy, TERMS, (Cut(Way.BOTH, 10, 30),), tuple(reads), tuple(frames), tuple(frames),
        (LogSeen(1, ("a", "b"), ("a", "b")),), (1, 2, 3), 3,
    )  # fmt: skip
    return replace(found, **changes)


def shifted(states: list[tuple[float, State]], n: int, **change: Any) -> list[tuple[float, State]]:
    """Return the states with the one at `n` at another time or with another content."""
    at, state = states[n]
    return [*states[:n], (change.get("at", at), change.get("state", state)), *states[n + 1 :]]


GOOD = reading(KEPT)
PLANTED: dict[str, tuple[Reading, str]] = {
    "shown too early": (reading(shifted(KEPT, 2, at=13)), "disconnected without cause"),
    "shown too late": (reading(shifted(KEPT, 2, at=20)), "cut off and not shown"),
    "never shown": (reading([*KEPT[:2], KEPT[4]]), "cut off and not shown"),
    "never cleared": (reading([*KEPT[:3], KEPT[4]]), "disconnected without cause"),
    "shown in a short cut": (
        reading(KEPT, cuts=(Cut(Way.BOTH, 10, 12),)),
        "disconnected without cause",
    ),
    "failed": (reading(shifted(KEPT, 4, state=("FAILED", "host_lost", 1))), "wrong status"),
    "keep placed again": (reading(MOVED), "placed again too early"),
    "placed again before its time": (
        reading(shifted(MOVED, 3, at=25), "stop_and_requeue"),
        "placed again too early",
    ),
    "placed again after a short cut": (
        reading(MOVED, "stop_and_requeue", cuts=(Cut(Way.BOTH, 10, 15),)),
        "placed again too early",
    ),
    "attempt went back": (
        reading([*MOVED, (40.5, DONE)], "stop_and_requeue"),
        "attempt went back",
    ),
    "never done": (reading(KEPT[:4]), "not completed"),
    "step went back": (
        replace(GOOD, reads=(*GOOD.reads, replace(GOOD.reads[-1], step=1))),
        "step went back",
    ),
    "frame missed": (replace(GOOD, frames=GOOD.frames[:3] + GOOD.frames[4:]), "frame missed"),
    "frame twice": (replace(GOOD, frames=(*GOOD.frames, GOOD.frames[-1])), "frame out of order or twice"),
    "frame differs": (
        replace(GOOD, frames=(*GOOD.frames[:1], replace(GOOD.frames[1], data="1"), *GOOD.frames[2:])),
        "frame differs",
    ),
    "gap frame": (
        replace(GOOD, frames=(*GOOD.frames, FrameSeen(41, 99, "gap", "{}"))),
        "gap shown",
    ),
    "only REST says so": (
        replace(GOOD, frames=tuple(f for f in GOOD.frames if "disconnected" not in f.data)),
        "REST and WebSocket differ",
    ),
    "log line lost": (replace(GOOD, logs=(LogSeen(1, ("a", "b"), ("b",)),)), "log not complete and in order"),
    "log cut short": (replace(GOOD, logs=(LogSeen(1, ("a", "b"), ("a",)),)), "log not complete and in order"),
    "stale log line": (
        replace(GOOD, logs=(LogSeen(1, ("a", "b"), ("b",), fenced=True),)),
        "log not complete and in order",
    ),
    "curve with a gap": (replace(GOOD, chart=(1, 3)), "gap in the curve"),
}  # fmt: skip


@pytest.mark.parametrize("policy", ["keep", "stop_and_requeue"])
def test_a_cut_that_is_shown_from_its_lease_to_its_heal_is_no_violation(policy: str) -> None:
    assert judge(reading(KEPT, policy)) == []


def test_a_job_that_moves_after_its_time_is_no_violation() -> None:
    assert judge(reading(MOVED, "stop_and_requeue")) == []


def test_a_next_attempt_may_begin_at_a_lower_step() -> None:
    moved = reading(MOVED, "stop_and_requeue")
    last = max(one.step for one in moved.reads if one.attempt < 2)
    reads = [
        one
        if one.attempt < 2
        else replace(one, step=last if one.at < 34 else min(one.step, 400) - 100)
        for one in moved.reads
    ]
    assert judge(replace(moved, reads=tuple(reads))) == []
    reads[-1] = replace(reads[-1], step=1)
    assert {v.rule for v in judge(replace(moved, reads=tuple(reads)))} == {"step went back"}


def test_a_fenced_attempt_may_have_said_more_than_is_shown() -> None:
    assert judge(replace(GOOD, logs=(LogSeen(1, ("a", "b"), ("a",), fenced=True),))) == []


def test_a_cut_of_the_answers_alone_is_shown_later() -> None:
    way = (Cut(Way.TO_AGENT, 10, 30),)
    assert judge(reading(shifted(KEPT, 2, at=23.5), cuts=way)) == []
    rules = {v.rule for v in judge(reading(shifted(KEPT, 2, at=26), cuts=way))}
    assert rules == {"cut off and not shown"}


@pytest.mark.parametrize("planted", PLANTED)
def test_every_planted_violation_is_reported(planted: str) -> None:
    seen, rule = PLANTED[planted]
    assert rule in {v.rule for v in judge(seen)}
