"""Group-relative policy optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.specs.base import AlgorithmHint
from shared.specs.hints import hint
from shared.specs.rollout import RolloutSpec

GroupSize = Annotated[
    int,
    Field(ge=2, le=1024),
    hint(
        "rl",
        "Completions per prompt, compared with each other; 4-8 is usual.",
        "每个提示的回答数，彼此比较；通常 4-8。",
        "completions",
    ),
]


OnPolicyClip = Annotated[
    float,
    Field(gt=0, le=1),
    hint(
        "rl",
        "Bound of the ratio of new to old probability. Each rollout is learned from once, so the ratio is 1 and this has no effect.",
        "新旧概率之比的上下界。每批采样只学习一次，比值恒为 1，因此该值不起作用。",
    ),
]


class GrpoSpec(RolloutSpec):
    """A completion is judged against the others of its prompt, so a group has at least two."""

    algorithm: Annotated[Literal["grpo"], AlgorithmHint]
    rollout_n: GroupSize = 5
    clip_ratio: OnPolicyClip = 0.2
