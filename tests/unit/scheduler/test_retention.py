"""What may leave REQUESTS: never what is not applied, nothing while there is room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.core.retention import removable


def test_the_older_half_goes_first_and_all_that_is_applied_when_it_is_nearly_full() -> None:
    assert removable(100, 1, 100, held=50, bound=100) == 0
    assert removable(100, 1, 100, held=51, bound=100) == 50
    assert removable(30, 1, 100, held=51, bound=100) == 30
    assert removable(30, 1, 100, held=76, bound=100) == 30
    assert removable(100, 1, 100, held=76, bound=100) == 100
    assert removable(100, 1, 100, held=76, bound=-1) == 0
    assert removable(9, 10, 100, held=76, bound=100) == 0


@given(st.integers(0, 200), st.integers(1, 100), st.integers(0, 100), st.integers(0, 100))
def test_nothing_beyond_what_is_applied_and_always_something_when_nearly_full(
    applied: int, first: int, more: int, held: int
) -> None:
    last = removable(applied, first, first + more, held, 100)
    assert 0 <= last <= applied
    if held > 75 and applied >= first:
        assert last == applied
