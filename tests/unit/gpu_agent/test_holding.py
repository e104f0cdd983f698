"""A checkpoint is told after the metrics in front of it, and never waits for ever where the broker answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gpu_agent.core.holding import (
    PATIENCE_SECONDS,
    SILENCE_SECONDS,
    Answers,
    Hold,
    leaving,
)

NOW = 1000.0
STEADY = Answers(NOW, 0.0)
"""The broker has answered all along."""
CUT = Answers(NOW - SILENCE_SECONDS - 1.0, 0.0)
"""It has not for longer than any answer takes."""
HEALED = Answers(NOW, NOW - 1.0)
"""It does again, since a second."""
LONG_AGO = NOW - PATIENCE_SECONDS


@pytest.mark.parametrize(
    ("sources", "sent", "hold", "answers", "count", "after"),
    [
        pytest.param((), 10, None, STEADY, 0, None, id="nothing to tell"),
        pytest.param((0, 0), 10, None, STEADY, 2, None, id="no checkpoint"),
        pytest.param((0, 50), None, None, STEADY, 2, None, id="no metrics wait"),
        pytest.param((50,), 50, None, STEADY, 1, None, id="metrics up to it are there"),
        pytest.param((50,), 49, None, STEADY, 0, Hold(50, NOW), id="one metric is missing"),
        pytest.param(
            (0, 50, 0, 90), 60, None, STEADY, 3, Hold(90, NOW), id="what is in front of it goes"
        ),
        pytest.param((50, 0), 40, Hold(50, 990.0), STEADY, 0, Hold(50, 990.0), id="it waits on"),
        pytest.param((50, 0), 50, Hold(50, 990.0), STEADY, 2, None, id="its wait is over"),
        pytest.param((), 50, Hold(50, 990.0), STEADY, 0, None, id="the wait ends without it"),
        pytest.param(
            (50, 0), 40, Hold(50, LONG_AGO), STEADY, 2, Hold(50, LONG_AGO), id="patience is over"
        ),
        pytest.param(
            (90,), 40, Hold(50, LONG_AGO), STEADY, 1, Hold(50, LONG_AGO), id="over for the next too"
        ),
        pytest.param(
            (90,), 50, Hold(50, LONG_AGO), STEADY, 0, Hold(90, NOW), id="the next waits anew"
        ),
        pytest.param(
            (50, 0), 40, Hold(50, 0.0), CUT, 0, Hold(50, 0.0), id="a cut ends no wait"
        ),
        pytest.param(
            (50, 0), 40, Hold(50, 0.0), HEALED, 0, Hold(50, 0.0), id="patience begins after a cut"
        ),
        pytest.param((50, 0), None, Hold(50, 0.0), CUT, 2, None, id="nothing waits any more"),
    ],
)  # fmt: skip
def test_what_may_go_out(
    sources: tuple[int, ...],
    sent: int | None,
    hold: Hold | None,
    answers: Answers,
    count: int,
    after: Hold | None,
) -> None:
    assert leaving(sources, sent, hold, answers, NOW) == (count, after)


def test_answers_last_from_the_first_one_after_a_cut() -> None:
    answers = Answers(0.0, 0.0)
    for now in (5.0, 15.0, 25.0):
        answers = answers.heard(now)
    assert answers == Answers(25.0, 0.0)
    assert answers.lasting(26.0, 20.0) == 6.0
    assert answers.lasting(26.0, -9.0) == 26.0
    assert answers.lasting(25.0 + SILENCE_SECONDS + 0.1, 0.0) == 0.0
    again = answers.heard(40.0)
    assert again == Answers(40.0, 40.0)
    assert again.lasting(41.0, 0.0) == 1.0


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 15.0),  # seconds that pass
            st.booleans(),  # does the broker answer?
            st.integers(0, 40),  # bytes of metrics that get through, where it does
            st.booleans(),  # is a checkpoint announced?
        ),
        max_size=60,
    )
)
def test_only_patience_lets_a_checkpoint_overtake_its_metrics(
    script: list[tuple[float, bool, int, bool]],
) -> None:
    now, sent, end, hold = 0.0, 0, 0, None
    answers = Answers(0.0, 0.0)
    waiting: list[int] = []  # bytes behind the checkpoints
    for seconds, answered, bytes_, announced in script:
        now += seconds
        if answered:
            answers = answers.heard(now)
            sent = min(end, sent + bytes_)
        if announced:
            end += 25
            waiting.append(end)
        missing = sent if sent < end else None
        count, hold = leaving(waiting, missing, hold, answers, now)
        patient = answers.lasting(now, 0.0) < PATIENCE_SECONDS
        assert all(s <= sent for s in waiting[:count]) or not patient
        assert all(s > sent for s in waiting[count : count + 1])
        waiting = waiting[count:]
        if waiting and hold is not None:
            assert answers.lasting(now, hold.since) < PATIENCE_SECONDS, "its wait has an end"
