"""What verl says about a step, from its console line to the public metric names of PRODUCT section 2; pure.

verl 0.7.0 writes `step:12 - actor/pg_loss:0.01 - …` (verl/utils/logger/aggregate_logger.py, `concat_dict_to_str`), and
Ray puts `(TaskRunner pid=…)` before it, in colour on a terminal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_LINE: Final = re.compile(r"^(?:\(\w+ pid=[^)]*\)\s*)?step:(\d+) - (.+)$")
_NUMBER: Final = re.compile(r"^(?:np\.\w+\()?(-?(?:\d[\d.]*(?:[eE][-+]?\d+)?|inf|nan))\)?$")
_NAMES: Final = {
    "critic/score/mean": "reward",
    "critic/score/min": "reward_min",
    "critic/score/max": "reward_max",
    "actor/pg_loss": "policy_loss",
    "actor/ppo_kl": "approx_kl",
    "actor/pg_clipfrac": "clipfrac",
    "actor/entropy": "entropy",
    "actor/kl_loss": "kl_divergence",
    "actor/reward_kl_penalty": "kl_divergence",
    "actor/grad_norm": "grad_norm",
    "actor/lr": "learning_rate",
    "critic/vf_loss": "value_loss",
    "response_length/mean": "completion_length",
    "response_length/min": "completion_length_min",
    "response_length/max": "completion_length_max",
    "response_length/clip_ratio": "truncated_rate",
    "perf/throughput": "tokens_per_second",
}
"""`critic/score` is what the reward function gave; `critic/rewards` has the KL penalty taken off."""
_HELD_OUT: Final = re.compile(r"^val-(?:core|aux)/[^ ]+/(reward|acc)/mean@\d+$")
_OF_HELD_OUT: Final = {
    "reward": "eval_reward",
    "acc": "eval_accuracy",
}


@dataclass(frozen=True, slots=True)
class VerlStep:
    """One line; `epoch` where it has one."""

    step: int
    metrics: dict[str, float]
    epoch: float | None = None


def parse_line(line: str) -> VerlStep | None:
    """Return what a line of verl's console logger says, or None for any other line."""
    match = _LINE.match(_COLOUR.sub("", line).strip())
    if match is None:
        return None
    metrics: dict[str, float] = {}
    epoch = None
    for part in match[2].split(" - "):
        name, _, raw = part.rpartition(":")
        number = _NUMBER.match(raw.strip())
        if number is None:
            continue
        value = float(number[1])
        if name == "training/epoch":
            epoch = value
        held_out = _HELD_OUT.match(name)
        public = _OF_HELD_OUT[held_out[1]] if held_out else _NAMES.get(name)
        if public is not None:
            metrics[public] = value
    return VerlStep(int(match[1]), metrics, epoch)
