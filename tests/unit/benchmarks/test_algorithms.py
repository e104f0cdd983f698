"""The baseline of the algorithms: the same rule as the platform's, and the same job as the bare script's."""

from __future__ import annotations

import pytest

from benchmarks import algorithms, run
from benchmarks.bare_algorithms import ALGORITHMS, PAIRED, first_step, rule
from services.gpu_agent.trainers.entry import TRAINERS
from services.reward.core.answers import judge
from services.reward.core.verdict import Verdict
from shared.rewards.rule_specs import MathVerify
from shared.specs.parse import parse_job_spec


@pytest.mark.parametrize(
    ("completion", "solution", "expected"),
    [
        ("\\boxed{133}", "133", 1.0),
        ("\\boxed{132}", "133", 0.0),
        ("first \\boxed{1}, then \\boxed{133}", "133", 1.0),
        ("133", "133", 0.0),
        ("\\boxed{133", "133", 0.0),
        ("\\boxed{133.0}", "133", 1.0),
        ("\\boxed{}", "133", 0.0),
        ("", "133", 0.0),
    ],
)
def test_the_function_of_the_baseline_judges_as_the_reward_service(
    completion: str, solution: str, expected: float
) -> None:
    verdict = judge(MathVerify(type="math_verify"), completion, solution)
    assert isinstance(verdict, Verdict)
    assert rule(completion, solution) == verdict.reward == expected


def test_every_algorithm_but_sft_has_its_rows() -> None:
    assert "algorithms" in run.GROUPS
    assert {*ALGORITHMS, "sft"} == set(TRAINERS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_job_of_a_start_is_one_that_the_platform_takes(algorithm: str) -> None:
    task = first_step(algorithm, "models/tiny")
    spec = parse_job_spec(algorithms.body(task))
    assert (spec.batch_size, spec.context_length, spec.max_steps) == (task.batch, task.context, 1)
    if algorithm not in PAIRED:
        assert getattr(spec, "rollout_n") == task.group  # noqa: B009 - of the rollout algorithms alone
