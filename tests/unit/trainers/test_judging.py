"""Pure rules of a training run."""

import math

import pytest

from services.gpu_agent.trainers.judging import Best, StepTimes, TokenRate, reached
from services.gpu_agent.trainers.matching import last_boxed, matches
from services.gpu_agent.trainers.memory import GIB, MemoryWatch, Use


@pytest.mark.parametrize(
    ("metric", "value", "target", "expected"),
    [
        ("eval_accuracy", 0.9, 0.9, True),
        ("eval_accuracy", 0.89, 0.9, False),
        ("loss", 0.5, 0.5, True),
        ("loss", 0.51, 0.5, False),
        ("eval_loss", 0.1, 0.5, True),
        ("loss", math.nan, 0.5, False),
        ("eval_accuracy", math.nan, 0.5, False),
    ],
)
def test_a_target_is_reached_from_the_worse_side(metric, value, target, expected):
    assert reached(metric, value, target) is expected


def test_best_counts_evaluations_that_brought_nothing_better():
    best = Best("eval_loss")
    for step, value in ((10, 2.0), (20, 1.5), (30, 1.5), (40, math.nan)):
        best = best.after(step, value)
    assert (best.step, best.value, best.without_improvement) == (20, 1.5, 2)
    assert best.exhausted(2)
    assert not best.exhausted(3)
    assert not best.exhausted(None)


def test_a_value_that_is_not_finite_is_never_the_best():
    assert Best("eval_loss").after(1, -math.inf).step is None
    assert Best("eval_accuracy").after(1, math.inf).step is None


def test_best_survives_a_checkpoint_unless_the_metric_changed():
    best = Best("eval_accuracy").after(5, 0.25)
    assert Best.from_json("eval_accuracy", best.as_json()) == best
    assert Best.from_json("eval_loss", best.as_json()) == Best("eval_loss")
    assert Best.from_json("eval_loss", None) == Best("eval_loss")


def test_the_estimate_needs_ten_steps_and_ignores_one_slow_step():
    times = StepTimes()
    for _ in range(9):
        times.add(0.5)
    assert times.eta_seconds(100) is None
    times.add(60.0)
    assert times.eta_seconds(100) == 50.0
    for _ in range(50):
        times.add(2.0)
    assert times.eta_seconds(10) == 20.0
    assert times.eta_seconds(-1) == 0.0


def test_tokens_per_second_is_live_and_leaves_pauses_out():
    rate = TokenRate(now=100.0, tokens=1000)
    assert rate.read(102.0, 1400) == 200.0
    rate.pause(8.0)
    assert rate.read(112.0, 1600) == 100.0
    assert rate.read(112.0, 1600) is None


@pytest.mark.parametrize(
    ("completion", "reference", "expected"),
    [
        (" 42\n", "42", True),
        ("42.", "42", False),
        (r"so \boxed{91}", r"\boxed{91}", True),
        (r"\boxed{90} no, \boxed{ 91 }", r"\boxed{91}", True),
        ("91", r"\boxed{91}", False),
        (r"\boxed{91", r"\boxed{91}", False),
        (r"\boxed{\frac{1}{2}}", r"the answer \boxed{\frac{1}{2}}", True),
        (r"\boxed{91}", "91", False),
    ],
)
def test_answers_match_exactly_or_by_their_box(completion, reference, expected):
    assert matches(completion, reference) is expected


def test_the_last_closed_box_counts():
    assert last_boxed(r"\boxed{1} \boxed{2") == "1"
    assert last_boxed("nothing") is None


def test_memory_warns_once_until_it_has_fallen():
    watch = MemoryWatch()
    high, low = Use("host memory", 91 * GIB, 100 * GIB), Use("host memory", 80 * GIB, 100 * GIB)
    (warning,) = watch.judge([high])
    assert warning.startswith("High memory usage: 91%")
    assert "batch_size" in warning
    assert watch.judge([high]) == []
    assert watch.judge([low]) == []
    assert len(watch.judge([high])) == 1
