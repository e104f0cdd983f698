"""What one step's completions were worth: metrics, samples to read, and whether enough rewards are real to go on."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from services.gpu_agent.trainers import reward_stats
from services.gpu_agent.trainers.context import Sample, TrainContext
from services.gpu_agent.trainers.reward_spec import RewardPlan
from services.gpu_agent.trainers.reward_stats import BLANK_STEPS, WINDOW_STEPS, ValidRewards
from services.gpu_agent.trainers.rollouts import Rollout, Verdict
from shared.rewards.specs import SelfPlay

SHOWN_SAMPLES: Final = 16
_CODES_SHOWN: Final = 3
_WARN_EVERY: Final = 50
_WIN_RATES: Final = ("majority_share", "win_rate")
"""Components of `self_play`: the share of the largest cluster, and a candidate's share of won duels."""


class RolloutReport:
    """Follows the steps of one attempt."""

    def __init__(self, context: TrainContext, plan: RewardPlan, min_valid_rate: float) -> None:
        """`min_valid_rate`: share of completions with a verdict, below which the run pauses."""
        self._context = context
        self._plan = plan
        self._at_least = min_valid_rate
        self._valid = ValidRewards(min_valid_rate)
        self._codes: Counter[str] = Counter()
        self._steps = 0
        self._warned = -_WARN_EVERY

    def step(
        self,
        step: int,
        rollouts: Sequence[Rollout],
        verdicts: Sequence[Verdict],
        advantages: Sequence[float],
        seconds: float,
    ) -> dict[str, float]:
        """Take one step in, all ranks together; write samples and return its metrics by their public names.

        `step`: the optimizer step that learns from it, from 1; `seconds`: how long the rewards took. Where the run must
        pause, `stop_cause` and `stop_message` of the context are set: the watcher saves and ends it after this step.
        """
        self._steps += 1
        for sample in samples(rollouts, verdicts, advantages):
            self._context.sample(step, sample)
        if not self._context.should_stop():  # what a stop cut short says nothing about the service
            self._look_for_pause(verdicts)
        return metrics(self._plan, rollouts, verdicts) | {"reward_latency_s": round(seconds, 4)}

    def _look_for_pause(self, verdicts: Sequence[Verdict]) -> None:
        self._codes.update(v.error or "unknown" for v in verdicts if v.reward is None)
        valid = sum(v.reward is not None for v in verdicts)
        if self._valid.after(valid, len(verdicts)):
            self._context.stop_cause = "reward_unavailable"
            self._context.stop_message = self._why()
        elif valid < len(verdicts) and self._steps - self._warned >= _WARN_EVERY:
            self._warned = self._steps
            self._context.warning(
                f"{len(verdicts) - valid} of {len(verdicts)} completions of this step got no reward "
                f"({self._listed()}); they are left out, not counted as zero."
            )

    def _why(self) -> tuple[str, str]:
        listed = self._listed()
        if self._valid.blank:
            return (
                f"No completion got a reward in the last {BLANK_STEPS} steps ({listed}).",
                f"最近 {BLANK_STEPS} 步没有任何回答得到奖励（{listed}）。",
            )
        rate = self._valid.rate
        return (
            f"Only {rate:.0%} of the completions of the last {WINDOW_STEPS} steps got a reward, and min_valid_reward_rate is {self._at_least:g} ({listed}).",
            f"最近 {WINDOW_STEPS} 步只有 {rate:.0%} 的回答得到奖励，而 min_valid_reward_rate 为 {self._at_least:g}（{listed}）。",
        )

    def _listed(self) -> str:
        return ", ".join(f"{code} × {n}" for code, n in self._codes.most_common(_CODES_SHOWN))


def metrics(
    plan: RewardPlan, rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]
) -> dict[str, float]:
    """Return the figures of one step; one that nothing is known of is not there. Pure."""
    rewards = [v.reward for v in verdicts]
    names = [r.group for r in rollouts]
    lengths = [r.tokens for r in rollouts]
    found = reward_stats.distribution(rewards)
    found |= reward_stats.accuracy([plan.measured(v) for v in verdicts], plan.right_from)
    found |= reward_stats.group_figures(names, rewards)
    found |= {
        "valid_reward_rate": sum(r is not None for r in rewards) / len(rewards),
        "completion_length": statistics.fmean(lengths),
        "completion_length_min": float(min(lengths)),
        "completion_length_max": float(max(lengths)),
        "truncated_rate": sum(r.truncated for r in rollouts) / len(rollouts),
    }
    for name in sorted({name for v in verdicts for name in v.components}):
        values = [x for v in verdicts if (x := v.components.get(name)) is not None]
        if values:
            found[f"reward_{name.replace('.', '_')}"] = statistics.fmean(values)
    return found | _win_rate(plan, names, verdicts)


def _win_rate(
    plan: RewardPlan, names: Sequence[str], verdicts: Sequence[Verdict]
) -> dict[str, float]:
    """Return how clearly the groups' winners win, as the mean over the groups.

    For duels the share that the best candidate of a group won (the share over all its candidates is one half by
    construction); for the majority the share of the largest cluster. It rises as the policy agrees with itself.
    """
    part = next((p for p in plan.parts if isinstance(p.reward, SelfPlay)), None)
    if part is None:
        return {}
    prefix = f"{part.name}." if plan.combined else ""
    best: dict[str, float] = {}
    for name, verdict in zip(names, verdicts, strict=True):
        for component in _WIN_RATES:
            value = verdict.components.get(prefix + component)
            if value is not None:
                best[name] = max(value, best.get(name, value))
    return {"win_rate": statistics.fmean(best.values())} if best else {}


def samples(
    rollouts: Sequence[Rollout], verdicts: Sequence[Verdict], advantages: Sequence[float]
) -> Iterable[Sample]:
    """Give up to SHOWN_SAMPLES completions with their verdicts, whole groups as far as they fit. Pure."""
    sizes = Counter(r.group for r in rollouts)
    taken: set[str] = set()
    left = SHOWN_SAMPLES
    for rollout, verdict, advantage in zip(rollouts, verdicts, advantages, strict=True):
        if rollout.group not in taken:
            if left <= 0 or (sizes[rollout.group] > left and taken):
                return
            taken.add(rollout.group)
        if left <= 0:
            return
        left -= 1
        yield sample_of(rollout, verdict, advantage)


def sample_of(rollout: Rollout, verdict: Verdict, advantage: float | None = None) -> Sample:
    """Return one completion with its verdict, as people read it."""
    return Sample(
        rollout.prompt.shown,
        rollout.completion,
        verdict.reward,
        {name: value for name, value in verdict.components.items() if value is not None},
        advantage,
        rollout.truncated,
        rollout.prompt.solution,
    )
