"""Supervised fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from shared.specs.base import AlgorithmHint, BaseSpec
from shared.specs.hints import hint
from shared.specs.rewards import RuleParameters


class SftSpec(RuleParameters, BaseSpec):
    """Full fine-tuning, or LoRA; the `reward_fn_*` rule scores `eval_generate`."""

    algorithm: Annotated[Literal["sft"], AlgorithmHint]
    packing: Annotated[
        bool,
        hint(
            "training",
            "Several short examples in one sequence: faster, same loss.",
            "把多个短样本拼进一个序列：更快，损失不变。",
        ),
    ] = False
