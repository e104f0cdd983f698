"""Group-relative policy optimisation: a completion is worth what it is worth beyond the others of its prompt.

DeepSeekMath, arXiv 2402.03300, section 4.1; the loss is averaged over tokens as in DAPO (arXiv 2503.14476), TRL's default.
"""

from __future__ import annotations

from services.gpu_agent.trainers import group_trainer
from services.gpu_agent.trainers.context import TrainContext


def run(context: TrainContext) -> None:
    """Train as the spec says; returns when the run is over or was asked to stop. Raises what ends it badly.

    Every optimizer step learns from completions of the policy as it is (on-policy), so the ratio of new to old
    probability is 1 where the loss is taken: `clip_ratio` bounds it, and `clipfrac` tells that nothing met the bound.
    """
    group_trainer.run(context, importance_sampling_level="token", loss_type="dapo")
