"""Runs of PPO whose verdicts come from a function of the test."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from services.gpu_agent.trainers.rollouts import Rollout, Verdict
from tests.integration.trainers.conftest import Ended, Runner, write_jsonl

VerdictOf = Callable[[int, int, Rollout], float | None]
"""(number of the call from 0, place in the batch, completion) to its reward."""

BASE = {
    "reward_fn_type": "math_verify",
    "batch_size": 2,
    "rollout_n": 5,
    "max_completion_length": 6,
    "ppo_epochs": 4,
    "save_steps": 1000,
}


def constant(reward: float | None) -> VerdictOf:
    return lambda _call, _place, _rollout: reward


def by_ascii(_call: int, _place: int, rollout: Rollout) -> float:
    """The share of ASCII among the characters; a tiny model learns it in a few steps."""
    return sum(c.isascii() for c in rollout.completion) / max(1, len(rollout.completion))


class PpoRunner:
    """Runs attempts of PPO in this process; `judged` keeps every batch that was judged in training."""

    def __init__(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runner = runner
        self.verdict: VerdictOf = by_ascii
        self.judged: list[Sequence[Rollout]] = []
        rows = [
            {"prompt": f"{a}+{b}=", "solution": str(a + b)} for a in range(10, 22) for b in (3, 7)
        ]
        write_jsonl(runner.train, rows)
        write_jsonl(runner.held_out, rows[:6])
        from services.gpu_agent.trainers import ppo, rollout_evaluation

        case = self

        class Scripted:
            """Stands where the reward service is asked."""

            seconds = 0.0

            def __init__(self, _context: Any, plan: Any) -> None:
                self.plan = plan

            def score(self, rollouts: Sequence[Rollout], priority: str = "train") -> list[Verdict]:
                if priority == "train":
                    case.judged.append(rollouts)
                call = len(case.judged) - 1
                found = [case.verdict(call, place, r) for place, r in enumerate(rollouts)]
                return [Verdict(v, error=None if v is not None else "unknown") for v in found]

            def close(self) -> None:
                pass

        monkeypatch.setattr(ppo, "Scorer", Scripted)
        monkeypatch.setattr(rollout_evaluation, "Scorer", Scripted)

    def __call__(self, job: str, config: dict[str, Any], attempt: int = 1, **fields: Any) -> Ended:
        ended = self.runner(job, BASE | config, attempt, algorithm="ppo", **fields)
        assert ended.code == 0 or ended.result["reason"] != "code_error", ended.result
        return ended
