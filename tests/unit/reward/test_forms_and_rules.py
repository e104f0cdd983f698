"""format_check, rule_based, self_play and composites as tables."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.reward.core.combine import combine, gate_closed
from services.reward.core.formats import check_format
from services.reward.core.rules import score_rules
from services.reward.core.texts import Sample
from services.reward.core.verdict import Verdict, failed, scored
from services.reward.core.votes import majority, pairs, win_rates
from shared.rewards.rule_specs import FormatCheck, RuleBased
from shared.rewards.scores import ErrorCode
from shared.rewards.specs import REWARD, Composite

GOOD = "<think>why</think>\n<answer>42</answer>"


@pytest.mark.parametrize(
    ("text", "strict", "graded"),
    [
        (GOOD, 1.0, 1.0),
        ("  " + GOOD + "\n", 1.0, 1.0),
        ("hello " + GOOD, 0.0, 0.8),
        (GOOD + " bye", 0.0, 0.8),
        ("<think></think><answer>42</answer>", 0.0, 0.8),
        ("<think>why</think><answer> </answer>", 0.0, 0.8),
        ("<answer>42</answer><think>why</think>", 0.0, 0.4),
        (GOOD + GOOD, 0.0, 0.0),
        ("<think>a</think><think>b</think><answer>42</answer>", 0.0, 0.2),
        ("<think>why<answer>42</answer>", 0.0, 0.2),
        ("42", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("<think>" * 100_000, 0.0, 0.0),
    ],
)
def test_think_answer(text: str, strict: float, graded: float) -> None:
    for mode, wanted in (("strict", strict), ("graded", graded)):
        spec = FormatCheck(type="format_check", mode=mode)  # type: ignore[arg-type]
        assert check_format(spec, Sample("", text)).reward == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("spec", "text", "reward"),
    [
        ({"preset": "boxed"}, r"\boxed{1}", 1.0),
        ({"preset": "boxed"}, r"<think>\boxed{1}", 0.0),
        ({"preset": "regex", "pattern": r"^\d+$"}, "42", 1.0),
        ({"preset": "regex", "pattern": r"^\d+$"}, "42a", 0.0),
        ({"preset": "tags", "tags": ["plan", "code"]}, "<plan>a</plan><code>b</code>", 1.0),
        ({"preset": "tags", "tags": ["plan", "code"]}, "<code>b</code><plan>a</plan>", 0.0),
        ({"preset": "tags", "tags": ["plan"]}, "<plan></plan>", 0.0),
        ({"preset": "json_schema", "json_schema": {"required": ["a"]}}, 'so {"a": 1}', 1.0),
        ({"preset": "json_schema", "json_schema": {"required": ["a"]}}, 'so {"b": 1}', 0.0),
        ({"preset": "json_schema", "json_schema": {"required": ["a"]}}, "none", 0.0),
    ],
)
def test_other_presets(spec: dict[str, Any], text: str, reward: float) -> None:
    form = REWARD.validate_python({"type": "format_check"} | spec)
    assert isinstance(form, FormatCheck)
    assert check_format(form, Sample("", text)).reward == reward


def test_a_cut_completion_has_no_form() -> None:
    spec = FormatCheck(type="format_check", preset="boxed")
    assert check_format(spec, Sample("", r"\boxed{1}", truncated=True)).reward == 0.0


def test_a_catastrophic_pattern_is_no_verdict_and_no_zero() -> None:
    spec = FormatCheck(type="format_check", preset="regex", pattern=r"^(\w+\s?)*$")
    verdict = check_format(spec, Sample("", "word " * 40 + "!"))
    assert verdict.error in (ErrorCode.VERIFIER_TIMEOUT, None)
    hard = FormatCheck(type="format_check", preset="regex", pattern=r"(a|aa|aaa)+b\1(a|aa)+c")
    slow = check_format(hard, Sample("", "a" * 3000))
    assert slow.reward in (None, 0.0)
    assert slow.reward is None or slow.error is None


def rules(*listed: dict[str, Any], **more: Any) -> RuleBased:
    named = [{"name": f"r{n}"} | rule for n, rule in enumerate(listed)]
    spec = REWARD.validate_python({"type": "rule_based", "rules": named} | more)
    assert isinstance(spec, RuleBased)
    return spec


@pytest.mark.parametrize(
    ("rule", "text", "score"),
    [
        ({"rule": "contains", "texts": ["42"]}, "it is 42.", 1.0),
        ({"rule": "contains", "texts": ["4"]}, "it is 42.", 0.0),
        ({"rule": "contains", "texts": ["4"]}, "it is 3.4", 0.0),
        ({"rule": "contains", "texts": ["4"]}, "it is 4,000", 0.0),
        ({"rule": "contains", "texts": ["a", "b"]}, "a", 1.0),
        ({"rule": "contains", "texts": ["a", "b"], "match": "all"}, "a", 0.0),
        ({"rule": "contains", "texts": ["YES"], "case_sensitive": False}, "yes", 1.0),
        ({"rule": "not_contains", "texts": ["sorry"]}, "here", 1.0),
        ({"rule": "not_contains", "texts": ["sorry"]}, "sorry", 0.0),
        ({"rule": "equals", "texts": ["yes"]}, " yes ", 1.0),
        ({"rule": "equals"}, "gold", 1.0),
        ({"rule": "equals"}, "old", 0.0),
        ({"rule": "regex", "pattern": r"\d{2}"}, "a42", 1.0),
        ({"rule": "regex", "pattern": r"\d{2}", "match": "full"}, "a42", 0.0),
        ({"rule": "length_chars", "min": 2, "max": 4}, "abc", 1.0),
        ({"rule": "length_chars", "min": 2, "max": 4}, "abcde", 0.0),
        ({"rule": "length_chars", "max": 4, "soft": 2}, "abcde", 0.5),
        ({"rule": "length_chars", "min": 4, "soft": 4}, "ab", 0.5),
        ({"rule": "length_tokens", "max": 3}, "one two three", 1.0),
        ({"rule": "length_tokens", "max": 3}, "一二三四", 0.0),
        ({"rule": "language", "language": "zh"}, "今天 very 天气很好很好很好啊啊啊啊", 1.0),
        ({"rule": "language", "language": "en"}, "今天天气", 0.0),
        ({"rule": "language", "language": "en"}, "123", 0.0),
        ({"rule": "repetition", "ngram": 1, "max_ratio": 0.5}, "a b c d", 1.0),
        ({"rule": "repetition", "ngram": 1, "max_ratio": 0.5}, "a a a a", 0.5),
        ({"rule": "json_schema", "json_schema": {"required": ["a"]}}, '{"a": 1}', 1.0),
        ({"rule": "keyword_count", "texts": ["a", "b"], "min": 2}, "a", 0.5),
        ({"rule": "keyword_count", "texts": ["a", "b"], "max": 1}, "a b", 0.0),
        ({"rule": "similarity", "threshold": 0.7}, "golds", 1.0),
        ({"rule": "similarity"}, "silver", 0.0),
    ],
)
def test_a_rule(rule: dict[str, Any], text: str, score: float) -> None:
    assert score_rules(rules(rule), Sample("", text, "gold")).reward == pytest.approx(score)


def test_rules_combine() -> None:
    yes, no = {"rule": "contains", "texts": ["a"]}, {"rule": "contains", "texts": ["b"]}
    sample = Sample("", "a")
    assert score_rules(rules(yes | {"weight": 3.0}, no), sample).reward == 0.75
    assert score_rules(rules(yes, no, combine="min"), sample).reward == 0.0
    assert score_rules(rules(yes, yes, combine="product"), sample).reward == 1.0
    assert score_rules(rules(yes | {"weight": 3.0}, combine="sum"), sample).reward == 1.0
    assert score_rules(rules(yes | {"weight": 3.0}, combine="sum", max=5.0), sample).reward == 3.0
    lost = score_rules(rules(yes | {"weight": 9.0}, no | {"required": True}), sample)
    assert (lost.reward, lost.components) == (0.0, {"r0": 1.0, "r1": 0.0})


def test_similarity_judges_no_numbers() -> None:
    verdict = score_rules(rules({"rule": "similarity"}), Sample("", "12345", "12346"))
    assert verdict.status == "skipped"


@pytest.mark.parametrize(
    ("clusters", "rewards", "share"),
    [
        ([0, 0, 1], (1.0, 1.0, 0.0), 2 / 3),
        ([0, 1], (0.5, 0.5), 0.5),
        ([0, 0, 1, 1, 2], (0.5, 0.5, 0.5, 0.5, 0.0), 0.4),
        ([None, None], (0.0, 0.0), 0.0),
        ([0, None], (1.0, 0.0), 0.5),
    ],
)
def test_majority(clusters: list[int | None], rewards: tuple[float, ...], share: float) -> None:
    result = majority(clusters)
    assert (result.rewards, result.share) == (rewards, share)


@given(st.lists(st.text(max_size=5), min_size=2, max_size=16), st.integers(1, 15))
def test_duels_are_fair_and_always_the_same(keys: list[str], opponents: int) -> None:
    drawn = pairs(keys, opponents)
    assert drawn == pairs(keys, opponents)
    assert len(set(drawn)) == len(drawn)
    met = [sum(n in duel for duel in drawn) for n in range(len(keys))]
    assert min(met) >= min(opponents, len(keys) - 1)


def test_win_rates_leave_out_what_was_not_decided() -> None:
    assert win_rates(3, [(0, 1, 1.0), (1, 2, 0.5), (0, 2, None)]) == (1.0, 0.25, 0.5)
    assert win_rates(2, [(0, 1, None)]) == (None, None)


def composite(combine_by: str, *children: tuple[str, float, bool], **more: Any) -> Composite:
    listed = [
        {"name": n, "weight": w, "required": r, "reward": {"type": "math_verify"}}
        for n, w, r in children
    ]
    spec = REWARD.validate_python(
        {"type": "composite", "combine": combine_by, "children": listed} | more
    )
    assert isinstance(spec, Composite)
    return spec


LOST = failed(ErrorCode.PROVIDER_TIMEOUT, "late")


def test_a_part_without_a_verdict_is_never_zero() -> None:
    spec = composite("weighted_sum", ("a", 1.0, False), ("b", 2.0, False))
    verdict = combine(spec, {"a": scored(1.0, "x"), "b": LOST})
    assert (verdict.reward, verdict.error) == (None, ErrorCode.PROVIDER_TIMEOUT)
    assert verdict.components == {"a": 1.0, "b": None}


def test_a_dropped_part_is_stood_in_for() -> None:
    for by in ("weighted_sum", "weighted_mean"):
        spec = composite(by, ("a", 1.0, False), ("b", 1.0, False), on_child_error="drop")
        full = combine(spec, {"a": scored(0.5, "x"), "b": scored(0.5, "x")})
        verdict = combine(spec, {"a": scored(0.5, "x"), "b": LOST})
        assert verdict.partial
        assert verdict.reward == pytest.approx(full.reward)
    needed = composite("weighted_sum", ("a", 1.0, True), ("b", 1.0, False), on_child_error="drop")
    assert combine(needed, {"a": LOST, "b": scored(1.0, "x")}).error is not None
    assert combine(needed, {"a": LOST, "b": LOST}).reward is None


@pytest.mark.parametrize(
    ("by", "reward"),
    [("weighted_sum", 0.0), ("weighted_mean", 0.0), ("product", 0.25), ("min", 0.5)],
)
def test_combinations(by: str, reward: float) -> None:
    spec = composite(by, ("a", 1.0, False), ("b", -1.0, False))
    verdicts = {"a": scored(0.5, "x"), "b": scored(0.5, "x")}
    assert combine(spec, verdicts).reward == pytest.approx(reward)


def test_first_ok_says_that_it_fell_back() -> None:
    spec = composite("first_ok", ("a", 1.0, False), ("b", 1.0, False))
    verdict = combine(spec, {"a": LOST, "b": scored(0.0, "x")})
    assert (verdict.reward, verdict.fallback) == (0.0, True)
    assert combine(spec, {"a": scored(0.3, "x")}).fallback is False
    assert combine(spec, {"a": LOST, "b": LOST}).reward is None


def test_gates() -> None:
    spec = composite("gated", ("a", 1.0, False), ("b", 1.0, False))
    assert gate_closed(spec, spec.children[0], scored(0.0, "x"))
    assert gate_closed(spec, spec.children[0], LOST)
    assert not gate_closed(spec, spec.children[0], scored(0.5, "x"))
    assert combine(spec, {"a": scored(0.0, "x")}).reason == "gate_a"


@pytest.mark.parametrize("reward", [None, float("nan"), float("inf")])
def test_a_verdict_is_a_finite_reward_or_an_error(reward: float | None) -> None:
    with pytest.raises(ValueError, match=r"."):
        Verdict(reward, "x")
    with pytest.raises(ValueError, match=r"."):
        Verdict(1.0, "x", error=ErrorCode.CANCELLED)
