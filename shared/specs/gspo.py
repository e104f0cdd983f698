"""Group self-play preference optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from shared.specs.base import AlgorithmHint
from shared.specs.grpo import GroupSize, OnPolicyClip
from shared.specs.hints import hint
from shared.specs.rewards import RuleName
from shared.specs.rollout import RolloutSpec


class GspoSpec(RolloutSpec):
    """The candidates of one prompt compete; `self_play` unless another reward is named."""

    algorithm: Annotated[Literal["gspo"], AlgorithmHint]
    rollout_n: GroupSize = 5
    clip_ratio: OnPolicyClip = 0.2
    reward_fn_type: Annotated[
        RuleName | None,
        hint(
            "reward",
            "self_play: candidates compete, by majority answer, or in duels judged by the provider or model named here.",
            "self_play：候选相互竞争，按多数答案，或由此处指定的服务、模型两两评判。",
        ),
    ] = "self_play"
