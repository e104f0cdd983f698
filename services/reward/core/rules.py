"""rule_based: an ordered list of named rules, each worth 0 to 1."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from rapidfuzz.fuzz import ratio

from services.reward.core.answers import gold_of
from services.reward.core.compare import is_formula
from services.reward.core.last_number import all_numbers
from services.reward.core.patterns import found
from services.reward.core.schemas import fits_schema
from services.reward.core.texts import Sample
from services.reward.core.verdict import Verdict, failed, scored
from shared.rewards.rule_specs import (
    Contains,
    Equals,
    JsonSchemaRule,
    KeywordCount,
    Language,
    Length,
    Regex,
    Repetition,
    RuleBased,
    Similarity,
)
from shared.rewards.scores import ErrorCode

_BARE_NUMBER: Final = re.compile(r"[-+]?[0-9]+(?:[.,][0-9]+)*%?")
_UNIT: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")  # fmt: skip
_SCRIPTS: Final[Mapping[str, re.Pattern[str]]] = {
    "zh": re.compile(r"[\u3400-\u9fff]"),
    "en": re.compile(r"[A-Za-z]"),
    "ja": re.compile(r"[\u3040-\u30ff\u3400-\u9fff]"),
    "ko": re.compile(r"[\uac00-\ud7af]"),
    "ru": re.compile(r"[\u0400-\u04ff]"),
    "ar": re.compile(r"[\u0600-\u06ff]"),
}
_LETTER: Final = re.compile(r"[^\W\d_]")
_LONGEST_COMPARED: Final = 10_000


class NoVerdict(Exception):
    """A rule cannot judge this item."""

    def __init__(self, error: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.error = error
        self.message = message


def score_rules(spec: RuleBased, sample: Sample) -> Verdict:
    """Score one completion by every rule; a required rule at 0 makes the whole 0."""
    parts: dict[str, float | None] = {}
    for rule in spec.rules:
        try:
            parts[rule.name] = _SCORES[type(rule)](rule, sample)
        except NoVerdict as problem:
            return failed(problem.error, f"rule {rule.name}: {problem.message}")
    values = {name: value for name, value in parts.items() if value is not None}
    total = _combined(spec, values)
    lost = [r.name for r in spec.rules if r.required and values[r.name] == 0]
    if lost:
        total = 0.0
    reward = min(max(total, spec.min), spec.max)
    reason = f"required_{lost[0]}" if lost else "rules"
    verdict = scored(reward, reason)
    return Verdict(verdict.reward, verdict.reason, components=parts)


def _combined(spec: RuleBased, values: Mapping[str, float]) -> float:
    weighted = [(rule.weight, values[rule.name]) for rule in spec.rules]
    if spec.combine == "sum":
        return sum(w * v for w, v in weighted)
    if spec.combine == "min":
        return min(values.values())
    if spec.combine == "product":
        return math.prod(values.values())
    return sum(w * v for w, v in weighted) / sum(w for w, _ in weighted)


def _contains(rule: Contains, sample: Sample) -> float:
    text = sample.completion if rule.case_sensitive else sample.completion.casefold()
    wanted = rule.texts if rule.case_sensitive else [t.casefold() for t in rule.texts]
    there = [holds(text, t) for t in wanted]
    result = any(there) if rule.match == "any" else all(there)
    return float(result == (rule.rule == "contains"))


def holds(text: str, part: str) -> bool:
    """Tell whether a text holds a part; a bare number must be a whole one, since 4 within 42 is the classic way to cheat."""
    if _BARE_NUMBER.fullmatch(part) is None:
        return part in text
    return part in text and part in all_numbers(text)


def _equals(rule: Equals, sample: Sample) -> float:
    wanted = rule.texts
    if wanted is None:
        gold = gold_of(sample.solution)
        if gold is None:
            raise NoVerdict(ErrorCode.GOLD_MISSING, "the item has no reference answer")
        wanted = (gold,)
    text = sample.completion.strip()
    if rule.case_sensitive:
        return float(text in [t.strip() for t in wanted])
    return float(text.casefold() in [t.strip().casefold() for t in wanted])


def _regex(rule: Regex, sample: Sample) -> float:
    result = found(rule.pattern, sample.completion, whole=rule.match == "full")
    if result is None:
        raise NoVerdict(ErrorCode.VERIFIER_TIMEOUT, "the pattern took longer than its 50 ms")
    return float(result)


def units(text: str) -> list[str]:
    """Return the words of a text; each CJK character counts as one."""
    return _UNIT.findall(text)


def _length(rule: Length, sample: Sample) -> float:
    text = sample.completion
    size = len(text) if rule.rule == "length_chars" else len(units(text))
    over = size - rule.max if rule.max is not None and size > rule.max else rule.min - size
    if over <= 0:
        return 1.0
    return 0.0 if over >= rule.soft else (1 + math.cos(math.pi * over / rule.soft)) / 2


def _language(rule: Language, sample: Sample) -> float:
    letters = len(_LETTER.findall(sample.completion))
    if letters == 0:
        return 0.0
    share = len(_SCRIPTS[rule.language].findall(sample.completion)) / letters
    return float(share >= rule.min_share)


def _repetition(rule: Repetition, sample: Sample) -> float:
    words = units(sample.completion)
    grams = Counter(zip(*(words[k:] for k in range(rule.ngram)), strict=False))
    total = sum(grams.values())
    repeated = 1 - len(grams) / total if total else 0.0
    if repeated <= rule.max_ratio:
        return 1.0
    return (1 - repeated) / (1 - rule.max_ratio)


def _json_schema(rule: JsonSchemaRule, sample: Sample) -> float:
    return float(fits_schema(sample.completion, rule.json_schema))


def _keywords(rule: KeywordCount, sample: Sample) -> float:
    count = sum(holds(sample.completion, text) for text in rule.texts)
    if rule.max is not None and count > rule.max:
        return 0.0
    return 1.0 if count >= rule.min else count / rule.min


def _similarity(rule: Similarity, sample: Sample) -> float:
    gold = gold_of(sample.solution)
    if gold is None:
        raise NoVerdict(ErrorCode.GOLD_MISSING, "the item has no reference answer")
    if is_formula(gold):
        raise NoVerdict(
            ErrorCode.GOLD_UNPARSEABLE,
            "similarity does not judge numbers and formulas, since 12345 and 12346 are nearly alike; use math_verify",
        )
    text = sample.completion.strip()
    if max(len(text), len(gold)) > _LONGEST_COMPARED:
        return 0.0
    return float(ratio(gold.strip(), text) / 100 >= rule.threshold)


_SCORES: Final[Mapping[type[Any], Callable[[Any, Sample], float]]] = {
    Contains: _contains,
    Equals: _equals,
    Regex: _regex,
    Length: _length,
    Language: _language,
    Repetition: _repetition,
    JsonSchemaRule: _json_schema,
    KeywordCount: _keywords,
    Similarity: _similarity,
}
