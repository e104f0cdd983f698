"""Proximal policy optimisation with a value head."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.specs.base import AlgorithmHint
from shared.specs.hints import hint
from shared.specs.rollout import RolloutSpec


class PpoSpec(RolloutSpec):
    """PPO; TRL 1.16 has no PPO any more, so defaults are those of its last `PPOConfig`."""

    algorithm: Annotated[Literal["ppo"], AlgorithmHint]
    vf_coef: Annotated[
        float,
        Field(ge=0, le=100),
        hint("rl", "Weight of the value loss.", "价值损失的权重。"),
    ] = 0.1
    gae_lambda: Annotated[
        float,
        Field(ge=0, le=1),
        hint(
            "rl",
            "Advantage estimation: 0 trusts the value head, 1 the rewards.",
            "优势估计：0 偏向价值头，1 偏向真实奖励。",
        ),
    ] = 0.95
    ppo_epochs: Annotated[
        int,
        Field(ge=1, le=100),
        hint(
            "rl",
            "Passes over the completions of one rollout.",
            "每批采样数据训练的遍数。",
            "epochs",
        ),
    ] = 4
    ppo_minibatches: Annotated[
        int,
        Field(ge=1, le=1024),
        hint("rl", "Optimizer steps per pass.", "每遍分成几次更新。"),
    ] = 1
