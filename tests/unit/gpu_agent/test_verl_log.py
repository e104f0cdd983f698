"""Lines that verl really printed, and what the run page shows of them."""

from __future__ import annotations

import math

import pytest

from services.gpu_agent.core.verl_log import VerlStep, parse_line

# printed by verl on gsm8k and on a counting task; the middle is cut out
COUNTING = (
    "(TaskRunner pid=247607) step:1 - global_seqlen/min:159906 - global_seqlen/mean:159906.0 - "
    "actor/entropy:0.09767807275056839 - actor/pg_loss:-0.0036091046008680547 - actor/pg_clipfrac:0.0012726205209868827 - "
    "actor/ppo_kl:0.00015248422758824226 - actor/pg_clipfrac_lower:0.0 - actor/grad_norm:0.2057906948029995 - "
    "perf/mfu/actor:0.0 - actor/lr:1e-06 - training/global_step:1 - training/epoch:0 - critic/score/mean:0.0888671875 - "
    "critic/score/max:1.0 - critic/score/min:0.0 - critic/rewards/mean:0.0888671875 - response_length/mean:93.126953125 - "
    "response_length/max:128.0 - response_length/min:5.0 - response_length/clip_ratio:0.19921875"
)
HELD_OUT = (
    "step:0 - val-aux/openai/gsm8k/reward/mean@1:0.565 - val-aux/openai/gsm8k/score/mean@1:0.565 - "
    "val-core/openai/gsm8k/acc/mean@1:0.508"
)
PPO = (
    "step:0 - timing/gen:21.470 - actor/reward_kl_penalty:0.000 - actor/reward_kl_penalty_coeff:0.001 - "
    "critic/vf_loss:14.947 - critic/vf_clipfrac:0.000 - critic/grad_norm:1023.278 - actor/pg_loss:-0.005 - "
    "actor/ppo_kl:0.000 - actor/grad_norm:1.992 - critic/score/mean:0.004"
)


def test_a_step_of_grpo() -> None:
    assert parse_line(COUNTING) == VerlStep(
        1,
        {
            "entropy": 0.09767807275056839,
            "policy_loss": -0.0036091046008680547,
            "clipfrac": 0.0012726205209868827,
            "approx_kl": 0.00015248422758824226,
            "grad_norm": 0.2057906948029995,
            "learning_rate": 1e-06,
            "reward": 0.0888671875,
            "reward_max": 1.0,
            "reward_min": 0.0,
            "completion_length": 93.126953125,
            "completion_length_max": 128.0,
            "completion_length_min": 5.0,
            "truncated_rate": 0.19921875,
        },
        epoch=0.0,
    )
    coloured = COUNTING.replace(
        "(TaskRunner pid=247607)", "\x1b[36m(TaskRunner pid=1, ip=10.4.1.33)\x1b[0m"
    )
    assert parse_line(coloured + "\n") == parse_line(COUNTING)


def test_a_validation_and_a_step_of_ppo() -> None:
    assert parse_line(HELD_OUT) == VerlStep(0, {"eval_reward": 0.565, "eval_accuracy": 0.508})
    step = parse_line(PPO)
    assert step is not None
    assert step.metrics == {
        "kl_divergence": 0.0, "value_loss": 14.947, "policy_loss": -0.005, "approx_kl": 0.0, "grad_norm": 1.992,
        "reward": 0.004,
    }  # fmt: skip


def test_numbers_of_numpy_and_those_that_are_none() -> None:
    step = parse_line(
        "step:3 - actor/lr:np.float64(1e-06) - actor/pg_loss:nan - actor/grad_norm:inf"
    )
    assert step is not None
    assert step.metrics["learning_rate"] == 1e-06
    assert math.isnan(step.metrics["policy_loss"])
    assert math.isinf(step.metrics["grad_norm"])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Training Progress:   1%|  | 1/140 [00:49<1:53:43, 49.09s/it]",
        "step:x - a:1",
        "step: 1",
        "my step:1 - a:2",
    ],
)
def test_any_other_line_says_nothing(line: str) -> None:
    assert parse_line(line) is None
