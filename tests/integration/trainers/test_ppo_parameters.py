"""What each parameter of PPO does, seen on a tiny model; the verdicts come from a function, so that every figure is known."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainers.conftest import Ended
from tests.integration.trainers.ppo_runs import PpoRunner, by_ascii, constant

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # those of torch, transformers and peft are not ours
]

ONCE = {"max_steps": 1, "ppo_epochs": 1}
"""One update, from a policy that has not moved since it sampled."""


def at(ended: Ended, name: str, step: int = 1) -> float:
    value: float = ended.series(name)[step]
    return value


def adam_steps(ended: Ended) -> int:
    import torch

    state = torch.load(Path(ended.result["last_checkpoint"]) / "optimizer.pt", weights_only=True)
    return int(state["state"][0]["step"])


@pytest.mark.parametrize(
    ("epochs", "minibatches", "rows_a_step"), [(1, 1, 10), (3, 1, 10), (2, 4, 10), (1, 10, 10)]
)
def test_epochs_and_minibatches_make_updates_not_steps(
    ppo: PpoRunner, epochs: int, minibatches: int, rows_a_step: int
) -> None:
    ended = ppo("run", {"max_steps": 2, "ppo_epochs": epochs, "ppo_minibatches": minibatches})
    assert ended.result["total_steps"] == 2
    assert adam_steps(ended) == 2 * epochs * minibatches
    assert [len(batch) for batch in ppo.judged] == [rows_a_step] * 2
    if epochs * minibatches == 1:  # nothing has moved when the only update looks
        assert abs(at(ended, "approx_kl")) < 1e-6
    else:
        assert at(ended, "approx_kl") > 1e-6


def test_the_loss_is_the_sum_that_the_coefficients_say(ppo: PpoRunner) -> None:
    coefficients = {"vf_coef": 0.7, "entropy_coef": 0.03}
    ended = ppo("run", {"max_steps": 3, **coefficients})
    plain = ppo("plain", {"max_steps": 3, "vf_coef": 0.0, "entropy_coef": 0.0})
    for step in (1, 2, 3):
        parts = [at(ended, n, step) for n in ("policy_loss", "value_loss", "entropy")]
        assert at(ended, "loss", step) == pytest.approx(
            parts[0] + 0.7 * parts[1] - 0.03 * parts[2], abs=1e-5
        )
        assert at(plain, "loss", step) == pytest.approx(at(plain, "policy_loss", step), abs=1e-6)
    # and they move the weights: the value head learns only by its own coefficient
    assert at(ended, "value_loss", 3) != at(plain, "value_loss", 3)
    assert at(ended, "entropy", 3) > at(plain, "entropy", 3)


@pytest.mark.parametrize(("lam", "share"), [(1.0, 1.0), (0.0, 1 / 6)])
def test_gae_lambda_decides_what_the_first_tokens_hear_of_the_score(
    ppo: PpoRunner, lam: float, share: float
) -> None:
    """A score of 1 after 6 tokens, with values of 0: returns are 1 everywhere, or at the last token only."""
    ppo.verdict = constant(1.0)
    config = {"gae_lambda": lam, "max_completion_length": 6, "kl_coef": 0.0}
    ended = ppo("run", {**ONCE, **config, "batch_size": 1, "rollout_n": 2})
    assert at(ended, "completion_length") == 6
    assert at(ended, "value_loss") == pytest.approx(0.5 * share, abs=1e-5)


def test_clip_ratio_holds_updates_back(ppo: PpoRunner) -> None:
    moving = {"max_steps": 1, "ppo_epochs": 4, "learning_rate": 1e-3}
    tight = ppo("tight", {**moving, "clip_ratio": 1e-4})
    loose = ppo("loose", {**moving, "clip_ratio": 0.9})
    assert at(tight, "clipfrac") > 0.1
    assert at(loose, "clipfrac") < 0.3 * at(tight, "clipfrac")
    assert at(tight, "approx_kl") < at(loose, "approx_kl")


def test_kl_coef_ties_the_policy_to_where_it_began(ppo: PpoRunner) -> None:
    moving = {"max_steps": 8, "learning_rate": 3e-3, "ppo_epochs": 2}
    free = ppo("free", {**moving, "kl_coef": 1e-6})
    tied = ppo("tied", {**moving, "kl_coef": 10.0})
    untied = ppo("untied", {**moving, "kl_coef": 0.0})
    assert abs(at(free, "kl_divergence")) < 1e-6  # the reference is the model as it was
    assert 0 < at(tied, "kl_divergence", 8) < 0.7 * at(free, "kl_divergence", 8)
    assert not untied.series("kl_divergence")  # nothing is compared where nothing is tied


def test_the_reference_is_the_model_that_was_named(ppo: PpoRunner) -> None:
    other = ppo("other", {"max_steps": 6, "learning_rate": 1e-2}).result["last_checkpoint"]
    for lora in (False, True):
        named = {"ref_model_path": other}
        ended = ppo(f"run{lora}", {**ONCE, "lora_enabled": lora}, model_paths=named)
        assert at(ended, "kl_divergence") > 1e-3
    adapter = ppo("adapter", {**ONCE, "lora_enabled": True}).result["last_checkpoint"]
    own = ppo("own", ONCE, model_paths={"ref_model_path": adapter})
    assert abs(at(own, "kl_divergence")) < 1e-3


def test_a_continued_adapter_is_tied_to_itself_as_it_was(ppo: PpoRunner) -> None:
    config = {"lora_enabled": True, "learning_rate": 1e-2, "max_steps": 4}
    first = ppo("first", config)
    assert at(first, "kl_divergence", 4) > 1e-4
    going_on = {**config, "lora_from_checkpoint": "continue"}
    ended = ppo("second", going_on, model_path=first.result["last_checkpoint"])
    assert abs(at(ended, "kl_divergence")) < 1e-6
    assert at(ended, "kl_divergence", 4) > 1e-4


def test_rollout_n_completions_of_each_prompt(ppo: PpoRunner) -> None:
    for n in (1, 3):
        ppo.judged.clear()
        ended = ppo(f"run{n}", {**ONCE, "batch_size": 4, "rollout_n": n})
        groups = Counter(r.group for r in ppo.judged[0])
        assert sorted(groups.values()) == [n] * 4
        assert ended.result["total_steps"] == 1
    whole = ppo("epoch", {"num_epochs": 1, "batch_size": 8, "rollout_n": 2})
    assert whole.result["total_steps"] == 3  # 24 prompts


def test_temperature_and_top_p_shape_what_is_sampled(ppo: PpoRunner) -> None:
    warm = ppo("warm", ONCE)
    cold = ppo("cold", {**ONCE, "temperature": 0.02})
    assert at(cold, "entropy") < at(warm, "entropy") - 0.5
    ppo.judged.clear()
    ppo("top", {**ONCE, "top_p": 1e-6, "rollout_n": 4})
    for prompt in {r.prompt.index for r in ppo.judged[0]}:
        assert len({r.completion for r in ppo.judged[0] if r.prompt.index == prompt}) == 1


def test_lengths_stay_within_what_was_asked(ppo: PpoRunner) -> None:
    ended = ppo("run", {**ONCE, "max_completion_length": 3})
    assert at(ended, "completion_length_max") <= 3
    rates = at(ended, "truncated_rate")
    assert rates == sum(r.truncated for r in ppo.judged[0]) / 10


def test_smaller_pieces_give_the_same_step(ppo: PpoRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.gpu_agent.trainers.ppo_model import PolicyWithValue

    rows: list[int] = []
    forward = PolicyWithValue.forward

    def counted(self: Any, input_ids: Any, *others: Any) -> Any:
        rows.append(len(input_ids))
        return forward(self, input_ids, *others)

    monkeypatch.setattr(PolicyWithValue, "forward", counted)
    whole = ppo("whole", {"max_steps": 2})
    assert max(rows) == 10
    rows.clear()
    pieces = ppo("pieces", {"max_steps": 2, "gradient_accumulation_steps": 4})
    assert max(rows) == 3
    for name in ("loss", "grad_norm", "policy_loss", "value_loss", "approx_kl"):
        assert at(pieces, name, 2) == pytest.approx(at(whole, name, 2), abs=2e-4), name
    rows.clear()
    halved = ppo("halved", {"max_steps": 2, "ppo_minibatches": 2}, oom_halvings=1)
    assert max(rows) == 2
    assert adam_steps(halved) == 2 * 2 * 4
    assert [len(batch) for batch in ppo.judged[-2:]] == [10, 10]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_recomputed_activations_give_the_same_step(ppo: PpoRunner, lora: bool) -> None:
    config = {"max_steps": 2, "lora_enabled": lora, "learning_rate": 1e-2}
    kept = ppo("kept", config)
    again = ppo("again", {**config, "gradient_checkpointing": True})
    assert at(kept, "approx_kl", 2) > 1e-6
    for name in ("loss", "grad_norm", "approx_kl"):
        assert at(again, name, 2) == pytest.approx(at(kept, name, 2), abs=1e-4), name


def test_a_reward_is_learned(ppo: PpoRunner) -> None:
    ppo.verdict = by_ascii
    config = {"max_steps": 30, "learning_rate": 3e-3, "batch_size": 8, "rollout_n": 4}
    ended = ppo("run", {**config, "max_completion_length": 8, "save_steps": 100})
    rewards = ended.series("reward")
    first, last = (sum(rewards[s] for s in steps) / 5 for steps in (range(1, 6), range(26, 31)))
    assert last > first + 0.2
