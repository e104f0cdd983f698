"""Downsampling and joining: what a chart must not lose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.api.telemetry.downsample import pick
from services.api.telemetry.series import ChartQuery, Part, reduce_series


def part(steps: list[float], values: list[float], attempt: int = 1) -> Part:
    x = np.array(steps, dtype=np.float64)
    return Part(attempt, x, x, np.array(values, dtype=np.float64))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), max_size=300),
    st.integers(1, 60),
)
def test_a_pick_is_sorted_unique_and_bounded(values: list[float], points: int) -> None:
    y = np.array(values, dtype=np.float64)
    chosen = pick(np.arange(len(y), dtype=np.float64), y, points)
    assert len(chosen) <= max(points, 0) or len(y) <= points
    assert (np.diff(chosen) > 0).all()
    assert len(y) > points or len(chosen) == len(y)


def test_a_spike_and_a_nan_among_a_million_points_stay() -> None:
    y = np.sin(np.arange(1_000_000) / 1e5)
    y[654_321] = 1000.0
    y[500_000] = np.nan
    chosen = pick(np.arange(len(y), dtype=np.float64), y, 2000)
    assert {654_321, 500_000, 0, 999_999} <= set(chosen.tolist())
    assert len(chosen) <= 2000


def test_many_marks_are_thinned_out() -> None:
    y = np.full(10_000, np.nan)
    y[::2] = 1.0
    chosen = pick(np.arange(len(y), dtype=np.float64), y, 100)
    assert len(chosen) <= 100
    assert 0 < int(np.isnan(y[chosen]).sum()) <= 25


def test_series_are_joined_on_the_union_of_x() -> None:
    parts = {
        "loss": [part([1, 2, 3], [3.0, 2.0, float("inf")])],
        "eval_loss": [part([2, 4.5], [2.5, 2.4])],
        "absent": [],
    }
    result = reduce_series(parts, ChartQuery())
    assert result.x == [1, 2, 3, 4.5]
    assert result.series == {
        "loss": [3.0, 2.0, None, None],
        "eval_loss": [None, 2.5, None, 2.4],
        "absent": [None] * 4,
    }
    assert result.nonfinite == {"loss": {"2": "inf"}}
    assert (result.raw_count, result.downsampled) == (5, False)


def test_the_newest_attempt_wins_per_step() -> None:
    parts = {"loss": [part([1, 2, 3, 4], [1, 1, 1, 1]), part([3, 5], [2, 2], attempt=2)]}
    result = reduce_series(parts, ChartQuery())
    assert result.series["loss"] == [1, 1, 2, 1, 2]
    assert result.attempts == [
        {"attempt": 1, "from": 1, "to": 4, "points": 3},
        {"attempt": 2, "from": 3, "to": 5, "points": 2},
    ]


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [(2, None, [2, 3]), (None, 2, [1, 2]), (2, 2, [2]), (9, None, [])],
)
def test_a_range_is_cut(start: float | None, stop: float | None, expected: list[int]) -> None:
    query = ChartQuery(start=start, stop=stop)
    assert reduce_series({"a": [part([1, 2, 3], [1, 2, 3])]}, query).x == expected


def test_x_may_run_backwards_against_steps() -> None:
    late = Part(2, np.array([2.0]), np.array([50.0]), np.array([9.0]))
    early = Part(1, np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 30.0]), np.array([1.0, 2, 3]))
    result = reduce_series({"a": [early, late]}, ChartQuery(x="time"))
    assert (result.x, result.series["a"]) == ([10, 30, 50], [1.0, 3.0, 9.0])
