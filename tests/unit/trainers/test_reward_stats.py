"""Figures of rewards, held against numbers worked out by hand; and when too few of them are real."""

import math
import statistics

import pytest

from services.gpu_agent.trainers.reward_stats import (
    BLANK_STEPS,
    WINDOW_STEPS,
    ValidRewards,
    accuracy,
    distribution,
    group_figures,
    groups,
    quantile,
)
from services.gpu_agent.trainers.rollouts import share_context


def test_the_distribution_of_valid_rewards():
    assert distribution([4.0, None, 1.0, 2.0, 3.0]) == {
        "reward": 2.5,
        "reward_std": math.sqrt(1.25),
        "reward_min": 1.0,
        "reward_q25": 1.75,
        "reward_median": 2.5,
        "reward_q75": 3.25,
        "reward_max": 4.0,
    }
    assert distribution([None, None]) == {}
    assert set(distribution([7.0]).values()) == {7.0, 0.0}


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_quantiles_are_those_of_the_standard_library(count):
    values = sorted((n * 37 % 11) / 3 for n in range(count))
    assert [quantile(values, share) for share in (0.25, 0.5, 0.75)] == pytest.approx(
        statistics.quantiles(values, n=4, method="inclusive")
    )


def test_groups_are_compared_only_where_two_have_a_verdict():
    names = ["a", "a", "b", "b", "c", "c"]
    rewards = [0.0, 1.0, 1.0, 1.0, 5.0, None]
    assert groups(names, rewards) == {"a": (0.0, 1.0), "b": (1.0, 1.0), "c": (5.0,)}
    assert group_figures(names, rewards) == {"group_variance": 0.125, "zero_variance_rate": 0.5}
    assert group_figures(["a"], [1.0]) == {}


def test_accuracy_leaves_out_what_has_no_verdict():
    assert accuracy([1.0, 0.5, 0.4, None], 0.5) == {"reward_accuracy": 2 / 3}
    assert accuracy([None], 0.5) == {}


def test_a_run_pauses_after_blank_steps_whatever_the_rate_asked_for():
    valid = ValidRewards(0.0)
    assert [valid.after(0, 8) for _ in range(BLANK_STEPS)] == [False] * (BLANK_STEPS - 1) + [True]
    valid = ValidRewards(0.0)
    assert not any(valid.after(n % BLANK_STEPS == 0, 8) for n in range(60))
    assert not valid.blank


def test_a_run_pauses_below_the_rate_once_the_window_is_full():
    valid = ValidRewards(0.8)
    assert valid.rate == 1.0
    told = [valid.after(7, 10) for _ in range(WINDOW_STEPS)]
    assert told == [False] * (WINDOW_STEPS - 1) + [True]
    assert valid.rate == pytest.approx(0.7)
    assert not any(ValidRewards(0.8).after(8, 10) for _ in range(200))


@pytest.mark.parametrize(
    ("lengths", "context", "most", "prompt", "completion"),
    [
        ([10, 20], 64, 16, 48, 16),  # both fit as asked
        ([10, 20], 64, 512, 32, 44),  # completions get what the longest kept prompt leaves
        ([10, 60], 64, 512, 32, 54),  # a prompt beyond half of the context is not kept
        ([60], 64, 512, 32, 32),  # none is kept
        ([1], 8, 1, 7, 1),
    ],
)
def test_how_one_context_is_shared(lengths, context, most, prompt, completion):
    plan = share_context(lengths, context, most)
    assert (plan.prompt, plan.completion) == (prompt, completion)
    assert all(n + plan.completion <= context for n in lengths if n <= plan.prompt)
