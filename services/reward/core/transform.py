"""From a reward model's logit to a reward."""

from __future__ import annotations

import math

from shared.rewards.specs import RewardModel


def transformed(spec: RewardModel, logit: float) -> float:
    """Return the reward: the logit itself, its sigmoid, its z-score, or it within ±`clip`."""
    if spec.transform == "sigmoid":
        if logit >= 0:
            return 1 / (1 + math.exp(-logit))
        return math.exp(logit) / (1 + math.exp(logit))
    if spec.transform == "zscore":
        return (logit - spec.mean) / spec.std
    if spec.transform == "clip":
        return max(-spec.clip, min(spec.clip, logit))
    return logit
