"""The table of answers: each decided as the rules say, in microseconds where no computer algebra is needed."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.reward.core.answers import Question, judge
from services.reward.core.verdict import Verdict
from shared.rewards.rule_specs import MathVerify
from tests.unit.reward.cases import ASKED, DECIDED, Case


def spec(extract: Any, compare: Any) -> MathVerify:
    return MathVerify(type="math_verify", extract=extract, compare=compare)


def ident(case: Case) -> str:
    return f"{case[0]}-{case[1]}-{case[5]}".replace(" ", "_")


@pytest.mark.parametrize("case", DECIDED, ids=ident)
def test_an_answer_is_worth_what_the_rules_say(case: Case) -> None:
    extract, compare, completion, solution, expected, _ = case
    began = time.process_time()
    verdict = judge(spec(extract, compare), completion, solution)
    assert time.process_time() - began < 0.5
    assert isinstance(verdict, Verdict), verdict
    if expected is None:
        assert verdict.status == "skipped"
        assert verdict.reward is None
    else:
        assert verdict.reward == expected


@pytest.mark.parametrize("case", ASKED, ids=ident)
def test_formulas_are_left_to_computer_algebra(case: Case) -> None:
    extract, compare, completion, solution, _, _ = case
    assert isinstance(judge(spec(extract, compare), completion, solution), Question)


def test_the_table_is_large() -> None:
    assert len({(c[0], c[1], c[2], c[3]) for c in [*DECIDED, *ASKED]}) >= 200


@given(
    completion=st.text(max_size=300) | st.text("\\boxed{}()^!/0123456789.,-% frac", max_size=200),
    solution=st.text(max_size=60) | st.text("\\boxed{}()^!/0123456789.,-% frac", max_size=60),
    extract=st.sampled_from(["boxed", "last_number", "json"]),
    compare=st.sampled_from(["exact", "numeric", "fuzzy"]),
)
@settings(max_examples=400, deadline=2000)
def test_any_text_gets_a_verdict(
    completion: str, solution: str, extract: str, compare: str
) -> None:
    found = judge(spec(extract, compare), completion, solution)
    assert isinstance(found, Question) or (found.reward is None) == (found.error is not None)


@given(st.text("0123456789+-*/^().{}\\sqrtfac ", min_size=1, max_size=60))
@settings(max_examples=300, deadline=2000)
def test_an_answer_is_never_wrong_against_itself(text: str) -> None:
    boxed = "\\boxed{" + text + "}"
    found = judge(spec("boxed", "exact"), boxed, boxed)
    if isinstance(found, Verdict) and found.reason != "no_answer" and found.error is None:
        assert found.reward == 1.0


def test_rewards_and_tolerances_are_the_specs() -> None:
    paid = MathVerify(
        type="math_verify", correct_reward=2.0, wrong_reward=-1.0, no_answer_reward=-2.0, rtol=0.1
    )
    rewards = [judge(paid, t, "10.0") for t in (r"\boxed{10.5}", r"\boxed{12}", "ten")]
    assert [r.reward for r in rewards if isinstance(r, Verdict)] == [2.0, -1.0, -2.0]
