"""Restarts of services: quick after a kill, slower while it keeps failing, bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainyard.stack.restart import CALM_SECONDS, CAP_SECONDS, FIRST_SECONDS, next_delay


def test_the_first_restart_is_quick_and_then_it_doubles() -> None:
    delays, failures = [], 0
    for _ in range(8):
        delay, failures = next_delay(failures, 0.1)
        delays.append(delay)
    assert delays[:4] == [0.2, 0.4, 0.8, 1.6]
    assert delays[-1] == CAP_SECONDS
    assert next_delay(9, 0.1, 0.5) == (0.5, 10)


@given(st.integers(0, 100), st.floats(0, 1e6))
def test_the_delay_is_bounded_and_calm_forgets(failures: int, lived: float) -> None:
    delay, count = next_delay(failures, lived)
    assert FIRST_SECONDS <= delay <= CAP_SECONDS
    assert 1 <= count <= 10
    if lived >= CALM_SECONDS:
        assert (delay, count) == (FIRST_SECONDS, 1)
