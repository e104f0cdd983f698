"""Rewards that a rule computes without any model: compared answers, checked form, listed rules, votes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from shared.rewards.base import Contract, Finite, Name
from shared.specs.text import as_tuple, refuse

Extract = Literal["boxed", "last_number", "json"]
Compare = Literal["exact", "numeric", "fuzzy"]
Key = Annotated[str, Field(min_length=1, max_length=128)]
Pattern = Annotated[str, Field(min_length=1, max_length=2000)]
Texts = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...],
    Field(min_length=1, max_length=100),
    BeforeValidator(as_tuple),
]
Schema = Annotated[dict[str, Any], Field(max_length=100)]


class MathVerify(Contract):
    """Compare the answer in a completion with the reference answer."""

    type: Literal["math_verify"]
    extract: Extract = "boxed"
    compare: Compare = "numeric"
    json_key: Key = "answer"
    rtol: Annotated[float, Field(ge=0, le=1)] = 1e-6
    atol: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    correct_reward: Finite = 1.0
    wrong_reward: Finite = 0.0
    no_answer_reward: Finite = 0.0


class FormatCheck(Contract):
    """Check the form of a completion; `strict` gives 0 or 1, `graded` the mean of the named checks."""

    type: Literal["format_check"]
    preset: Literal["think_answer", "boxed", "json_schema", "regex", "tags"] = "think_answer"
    mode: Literal["strict", "graded"] = "strict"
    pattern: Pattern | None = None
    json_schema: Schema | None = None
    tags: (
        Annotated[tuple[Name, ...], Field(min_length=1, max_length=16), BeforeValidator(as_tuple)]
        | None
    ) = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {"regex": "pattern", "json_schema": "json_schema", "tags": "tags"}
        field = needed.get(self.preset)
        if field is not None and getattr(self, field) is None:
            raise refuse(
                "invalid",
                f"preset {self.preset} needs {field}",
                f"preset {self.preset} 需要 {field}",
            )
        return self


class _Rule(Contract):
    name: Name
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    required: bool = False
    """A score of 0 here makes the whole reward 0."""


class Contains(_Rule):
    """The text holds any (or all) of `texts`; a bare number must stand alone."""

    rule: Literal["contains", "not_contains"]
    texts: Texts
    match: Literal["any", "all"] = "any"
    case_sensitive: bool = True


class Equals(_Rule):
    """The text, trimmed, is one of `texts`, or the reference answer where none is given."""

    rule: Literal["equals"]
    texts: Texts | None = None
    case_sensitive: bool = True


class Regex(_Rule):
    """A pattern is found (`search`) or describes the whole text (`full`)."""

    rule: Literal["regex"]
    pattern: Pattern
    match: Literal["search", "full"] = "search"


class Length(_Rule):
    """The length lies between `min` and `max`; over `soft` beyond them the score falls along a cosine."""

    rule: Literal["length_chars", "length_tokens"]
    min: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    max: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    soft: Annotated[int, Field(ge=0, le=10_000_000)] = 0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise refuse("invalid", "max is below min", "max 小于 min")
        return self


class Language(_Rule):
    """The share of letters of one script."""

    rule: Literal["language"]
    language: Literal["zh", "en", "ja", "ko", "ru", "ar"]
    min_share: Annotated[float, Field(gt=0, le=1)] = 0.7


class Repetition(_Rule):
    """The share of repeated n-grams stays below `max_ratio`; above it the score falls to 0."""

    rule: Literal["repetition"]
    ngram: Annotated[int, Field(ge=1, le=20)] = 4
    max_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1


class JsonSchemaRule(_Rule):
    """The last JSON object of the text fits a JSON schema."""

    rule: Literal["json_schema"]
    json_schema: Schema


class KeywordCount(_Rule):
    """How many of `texts` occur, between `min` and `max` (default all)."""

    rule: Literal["keyword_count"]
    texts: Texts
    min: Annotated[int, Field(ge=0, le=100)] = 1
    max: Annotated[int, Field(ge=0, le=1000)] | None = None


class Similarity(_Rule):
    """Character similarity to the reference answer reaches `threshold`; refused where the answer is a number or formula."""

    rule: Literal["similarity"]
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.8


Rule = Annotated[
    Contains | Equals | Regex | Length | Language | Repetition | JsonSchemaRule | KeywordCount | Similarity,
    Field(discriminator="rule"),
]  # fmt: skip


class RuleBased(Contract):
    """An ordered list of named rules, each worth 0 to 1, combined and clipped to [`min`, `max`]."""

    type: Literal["rule_based"]
    rules: Annotated[
        tuple[Rule, ...], Field(min_length=1, max_length=64), BeforeValidator(as_tuple)
    ]
    combine: Literal["weighted_mean", "sum", "min", "product"] = "weighted_mean"
    min: Finite = 0.0
    max: Finite = 1.0

    @model_validator(mode="after")
    def _sound(self) -> Self:
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise refuse("invalid", "two rules have the same name", "有两条规则重名")
        if self.max < self.min:
            raise refuse("invalid", "max is below min", "max 小于 min")
        return self
