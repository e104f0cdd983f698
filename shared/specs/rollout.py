"""Parameters of the algorithms that learn from their own completions: PPO, GRPO, GSPO."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shared.specs.base import BaseSpec
from shared.specs.hints import hint
from shared.specs.rewards import RewardParameters
from shared.specs.text import ModelPath


class RolloutSpec(RewardParameters, BaseSpec):
    """Sampling, clipping and the tie to the reference model; sampling defaults are TRL 1.16's."""

    kl_coef: Annotated[
        float,
        Field(ge=0, le=10),
        hint(
            "rl",
            "Pull towards the reference model; 0.001-0.01 is usual.",
            "向参考模型靠拢的强度；通常 0.001-0.01。",
        ),
    ] = 0.001
    clip_ratio: Annotated[
        float,
        Field(gt=0, le=1),
        hint(
            "rl",
            "How far one update may move the policy; 0.1-0.3 is usual.",
            "单次更新允许的策略变化幅度；通常 0.1-0.3。",
        ),
    ] = 0.2
    entropy_coef: Annotated[
        float,
        Field(ge=0, le=10),
        hint("rl", "Bonus for staying undecided; keeps exploration alive.", "熵奖励，保持探索。"),
    ] = 0.0
    rollout_n: Annotated[
        int,
        Field(ge=1, le=1024),
        hint(
            "rl",
            "Completions sampled per prompt; 4-8 is usual.",
            "每个提示采样的回答数；通常 4-8。",
            "completions",
        ),
    ] = 5
    temperature: Annotated[
        float,
        Field(gt=0, le=10),
        hint("rl", "Randomness of sampling.", "采样温度。"),
    ] = 1.0
    top_p: Annotated[
        float,
        Field(gt=0, le=1),
        hint(
            "rl",
            "Only the likeliest tokens with this share of probability.",
            "只在累计概率达到该值的词元中采样。",
        ),
    ] = 1.0
    max_completion_length: Annotated[
        int,
        Field(ge=1, le=1_048_576),
        hint(
            "rl",
            "Longest completion; prompt and completion together stay within context_length.",
            "回答的最大长度；提示与回答之和不超过 context_length。",
            "tokens",
        ),
    ] = 512
    ref_model_path: Annotated[
        ModelPath | None,
        hint(
            "rl",
            "Reference model; null takes the model as it was at the start.",
            "参考模型；null 表示训练开始时的模型。",
        ),
    ] = None
    min_valid_reward_rate: Annotated[
        float,
        Field(ge=0, le=1),
        hint(
            "rl",
            "The job pauses when fewer completions than this get a verdict over 50 steps.",
            "50 步内得到有效奖励的比例低于该值时任务暂停。",
        ),
    ] = 0.8
