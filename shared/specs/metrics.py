"""The headline metrics of each algorithm, in the product's order, and which way each is better."""

from __future__ import annotations

from typing import Final, Literal

from shared.specs.base import Algorithm

METRICS: Final[dict[Algorithm, tuple[str, ...]]] = {
    "sft": ("loss", "learning_rate", "grad_norm", "epoch", "tokens_per_second", "eval_loss"),
    "dpo": ("loss", "reward_chosen", "reward_rejected", "reward_margin", "accuracy"),
    "ppo": (
        "reward",
        "kl_divergence",
        "policy_loss",
        "value_loss",
        "approx_kl",
        "clipfrac",
        "entropy",
    ),
    "grpo": (
        "reward",
        "reward_accuracy",
        "kl_divergence",
        "group_variance",
        "clipfrac",
        "entropy",
    ),
    "gspo": (
        "reward",
        "reward_accuracy",
        "kl_divergence",
        "group_variance",
        "clipfrac",
        "entropy",
        "win_rate",
    ),
    "reward_model": ("loss", "accuracy", "reward_margin"),
}

# Every trainer reports these beside its headline metrics.
GENERAL_METRICS: Final = ("loss", "learning_rate", "grad_norm", "epoch", "tokens_per_second")

_LOWER_IS_BETTER: Final = (
    "loss",
    "kl_divergence",
    "approx_kl",
    "clipfrac",
    "grad_norm",
    "learning_rate",
)
_TRAINING_ONLY: Final = ("learning_rate", "grad_norm", "epoch", "tokens_per_second")

_BY_REWARD: Final = ("ppo", "grpo", "gspo")
"""Evaluated by answers and their rewards alone: there is no loss, entropy or divergence of held-out prompts."""


def metric_goal(name: str) -> Literal["min", "max"]:
    """Return the better direction of a metric; `stop_value` is reached from the other side."""
    return "min" if name.endswith(_LOWER_IS_BETTER) else "max"


def stop_metrics(algorithm: Algorithm) -> list[str]:
    """Return the metrics that `stop_metric` may name for an algorithm, evaluation ones last."""
    trained = list(dict.fromkeys([*METRICS[algorithm], *GENERAL_METRICS]))
    plain = [name for name in trained if not name.startswith("eval_")]
    if algorithm in _BY_REWARD:
        return [*plain, "eval_reward", "eval_accuracy"]
    measured = [f"eval_{name}" for name in plain if name not in _TRAINING_ONLY]
    return [*plain, *dict.fromkeys(["eval_loss", "eval_accuracy", *measured])]
