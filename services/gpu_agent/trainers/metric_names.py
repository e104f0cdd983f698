"""From the names that libraries log to the public ones of PRODUCT section 2; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_ROLLOUT: Final = {
    "kl": "kl_divergence",
    "clip_ratio/region_mean": "clipfrac",
    "completions/mean_length": "completion_length",
    "completions/min_length": "completion_length_min",
    "completions/max_length": "completion_length_max",
    "completions/clipped_ratio": "truncated_rate",
    "frac_reward_zero_std": "zero_variance_rate",
}
_PREFERENCE: Final = {
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/margins": "reward_margin",
    "rewards/accuracies": "accuracy",
}
RENAMED: Final[Mapping[str, Mapping[str, str]]] = {
    "sft": {},
    "dpo": _PREFERENCE,
    "ppo": {},
    "grpo": _ROLLOUT,
    "gspo": _ROLLOUT,
    "reward_model": {"margin": "reward_margin"},
}
_DROPPED: Final = ("_runtime", "_per_second", "_num_tokens", "_model_preparation_time")
_EVAL: Final = "eval_"


def public(algorithm: str, logs: Mapping[str, object]) -> dict[str, float]:
    """Return the numbers of one log record under their public names; what is no number, or only about the run, goes.

    A name that has no public one keeps its own, `/` written as `_`; `eval_` stays in front.
    """
    names = RENAMED[algorithm]
    found = {}
    for name, value in logs.items():
        if not isinstance(value, int | float) or name.endswith(_DROPPED):
            continue
        prefix = _EVAL if name.startswith(_EVAL) else ""
        bare = name.removeprefix(prefix)
        found[prefix + names.get(bare, bare).replace("/", "_")] = float(value)
    return found
