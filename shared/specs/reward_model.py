"""Training a local reward model."""

from __future__ import annotations

from typing import Annotated, Literal

from shared.specs.base import AlgorithmHint, BaseSpec


class RewardModelSpec(BaseSpec):
    """A sequence classifier that learns from preference pairs, for `reward_model_type: model`."""

    algorithm: Annotated[Literal["reward_model"], AlgorithmHint]
