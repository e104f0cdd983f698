from __future__ import annotations

import pytest

from services.gpu_agent.core.stall import Progress, is_stalled, limit, saw


def after_steps(seconds: float, count: int) -> tuple[Progress, float]:
    now = 0.0
    progress = Progress(now)
    for step in range(1, count + 1):
        now += seconds
        progress = saw(progress, now, step)
    return progress, now


@pytest.mark.parametrize(
    ("seconds", "steps", "expected"),
    [
        (1.0, 0, 3600.0),
        (1.0, 1, 3600.0),  # one step tells nothing about how long a step takes
        (1.0, 2, 600.0),
        (10.0, 50, 600.0),
        (60.0, 5, 1200.0),
    ],
)
def test_limit(seconds: float, steps: int, expected: float) -> None:
    progress, now = after_steps(seconds, steps)
    assert limit(progress) == expected
    assert not is_stalled(progress, now + expected)
    assert is_stalled(progress, now + expected + 1)


def test_any_line_is_a_sign_of_life() -> None:
    progress, now = after_steps(1.0, 10)
    progress = saw(progress, now + 599)
    assert not is_stalled(progress, now + 1198)


def test_a_step_seen_twice_does_not_shorten_the_median() -> None:
    progress, now = after_steps(100.0, 5)
    for _ in range(100):
        progress = saw(progress, now, 5)
    assert limit(progress) == 2000.0


def test_steps_logged_every_ten() -> None:
    progress, now = Progress(0.0), 0.0
    for step in range(10, 60, 10):
        now += 500
        progress = saw(progress, now, step)
    assert limit(progress) == 1000.0
