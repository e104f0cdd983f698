"""Every reward that can be asked for: rules, judges, reward models, and their combinations."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from shared.rewards.base import Contract, Finite, Name
from shared.rewards.rule_specs import Compare, Extract, FormatCheck, Key, MathVerify, RuleBased
from shared.specs.text import as_tuple, refuse

DEPTH: Final = 3
"""Composites may be nested this deep."""


class Judge(Contract):
    """A model behind an OpenAI-compatible API gives a score within `scale`, mapped to 0..1."""

    type: Literal["judge"]
    provider: Name
    """A configured provider, or `job`: the one private to the job."""
    model: Annotated[str, Field(min_length=1, max_length=128)] = "qwen-plus"
    rubric: Annotated[str, Field(max_length=8000)] = ""
    scale: Annotated[tuple[Finite, Finite], BeforeValidator(as_tuple)] = (0.0, 10.0)
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: Annotated[int, Field(ge=16, le=8192)] = 256
    samples: Annotated[int, Field(ge=1, le=9)] = 1
    """More than one: the median counts."""
    seed: int | None = None
    show_solution: bool = False
    cache: bool | None = None
    """None: verdicts are kept where temperature is 0 and samples is 1."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale[0] >= self.scale[1]:
            raise refuse(
                "invalid", "scale needs a lower end below its upper end", "scale 的下限须小于上限"
            )
        return self


class RewardModel(Contract):
    """A sequence-classification model: a checkpoint on this host, or behind an HTTP endpoint."""

    type: Literal["reward_model"]
    backend: Literal["transformers", "http"] = "transformers"
    model_path: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Folder of the checkpoint (`transformers`), or the model's name there (`http`)."""
    provider: Name | None = None
    """Configured endpoint of `http`."""
    route: Literal["classify", "pooling", "embeddings", "get_reward"] = "classify"
    max_length: Annotated[int, Field(ge=16, le=131_072)] = 4096
    transform: Literal["none", "sigmoid", "zscore", "clip"] = "none"
    mean: Finite = 0.0
    std: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    clip: Annotated[float, Field(gt=0, le=1e9)] = 5.0

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.backend == "transformers" and self.model_path is None:
            raise refuse(
                "invalid",
                "backend transformers needs model_path",
                "backend 为 transformers 时需要 model_path",
            )
        if self.backend == "http" and self.provider is None:
            raise refuse(
                "invalid", "backend http needs provider", "backend 为 http 时需要 provider"
            )
        return self


class SelfPlay(Contract):
    """The completions of one prompt compete: agreement with the majority, or duels."""

    type: Literal["self_play"]
    mode: Literal["majority", "pairwise"] = "majority"
    extract: Extract = "boxed"
    compare: Compare = "numeric"
    json_key: Key = "answer"
    opponents: Annotated[int, Field(ge=1, le=15)] = 3
    by: Literal["scores", "judge", "reward_model"] = "scores"
    """Who decides duels; `scores`: `metadata.score` that the caller supplies with each item."""
    judge: Judge | None = None
    reward_model: RewardModel | None = None

    @model_validator(mode="after")
    def _decided(self) -> Self:
        if self.mode == "pairwise" and self.by != "scores" and getattr(self, self.by) is None:
            raise refuse(
                "invalid",
                f"duels by {self.by} need {self.by}",
                f"由 {self.by} 评判时需要 {self.by}",
            )
        return self


class Child(Contract):
    """One part of a composite."""

    name: Name
    weight: Annotated[float, Field(ge=-1000, le=1000)] = 1.0
    required: bool = False
    threshold: Finite = 0.0
    """`gated`: the children behind this one run only where it scored above."""
    reward: Reward


class Composite(Contract):
    """Several rewards in one."""

    type: Literal["composite"]
    combine: Literal["weighted_sum", "weighted_mean", "product", "min", "first_ok", "gated"] = (
        "weighted_sum"
    )
    children: Annotated[
        tuple[Child, ...], Field(min_length=1, max_length=8), BeforeValidator(as_tuple)
    ]
    on_child_error: Literal["error", "drop"] = "error"

    @model_validator(mode="after")
    def _sound(self) -> Self:
        names = [child.name for child in self.children]
        if len(set(names)) != len(names):
            raise refuse("invalid", "two children have the same name", "有两个分量重名")
        if depth(self) > DEPTH:
            raise refuse(
                "invalid", f"composites are nested deeper than {DEPTH}", f"组合嵌套超过 {DEPTH} 层"
            )
        if self.combine == "weighted_mean" and sum(abs(c.weight) for c in self.children) == 0:
            raise refuse("invalid", "all weights are 0", "所有权重均为 0")
        return self


Reward = Annotated[
    MathVerify | FormatCheck | RuleBased | SelfPlay | Judge | RewardModel | Composite,
    Field(discriminator="type"),
]
Child.model_rebuild()
Composite.model_rebuild()

REWARD: Final[TypeAdapter[Reward]] = TypeAdapter(Reward)


def depth(reward: Reward) -> int:
    """Return how deep composites are nested in `reward`; 0 for a reward of one part."""
    if not isinstance(reward, Composite):
        return 0
    return 1 + max(depth(child.reward) for child in reward.children)


def parts(reward: Reward) -> list[Reward]:
    """Return `reward` and everything within it."""
    if isinstance(reward, SelfPlay):
        return [reward, *(r for r in (reward.judge, reward.reward_model) if r is not None)]
    if not isinstance(reward, Composite):
        return [reward]
    return [reward, *(inner for child in reward.children for inner in parts(child.reward))]
