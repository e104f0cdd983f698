"""One PPO attempt from spec to result: what it says and saves, how it is stopped and killed, and that it goes on exactly."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from services.gpu_agent import checkpoint_store
from services.gpu_agent.trainers.rollouts import Rollout
from shared.specs.metrics import METRICS
from tests.integration.trainers.conftest import Ended, Runner, write_jsonl
from tests.integration.trainers.ppo_runs import BASE, PpoRunner, by_ascii, constant
from tests.integration.trainers.preference import PairRunner

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # those of torch, transformers and peft are not ours
]

COMPARED = (
    "loss", "grad_norm", "learning_rate", "num_tokens", "epoch", "reward", "kl_divergence", "policy_loss",
    "value_loss", "approx_kl", "clipfrac", "entropy", "eval_reward",
)  # fmt: skip
GOING_ON = {
    "max_steps": 7,
    "batch_size": 8,  # three steps an epoch
    "rollout_n": 2,
    "ppo_epochs": 2,
    "ppo_minibatches": 2,
    "learning_rate": 1e-3,
    "save_steps": 2,
    "save_total_limit": 20,
    "eval_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
}
KINDS = [
    pytest.param({}, id="full"),
    pytest.param({"lora_enabled": True, "lora_dropout": 0.2, "learning_rate": 1e-2}, id="lora"),
]


def same(whole: Ended, part: Ended, after: int) -> None:
    """Every figure of the steps after `after`, bit for bit; those of `part` are all there."""
    for name in COMPARED:
        expected = {s: v for s, v in whole.series(name).items() if s > after}
        found = {s: v for s, v in part.series(name).items() if s > after}
        assert {s: found[s] - v for s, v in expected.items()} == dict.fromkeys(expected, 0.0), name


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {f"{file.name}:{name}": value for name, value in load_file(file).items()}
    return found


def test_a_run_reports_samples_and_saves(ppo: PpoRunner, capfd: pytest.CaptureFixture[str]) -> None:
    config = {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "eval_generate": True}
    ended = ppo("run", config, eval_data_path=str(ppo.runner.held_out))
    assert ended.code == 0, ended.result
    result = ended.result
    assert (result["outcome"], result["step"], result["total_steps"]) == ("completed", 4, 4)
    for name in (*METRICS["ppo"], "loss", "learning_rate", "grad_norm", "tokens_per_second",
                 "completion_length", "truncated_rate", "valid_reward_rate", "num_tokens",
                 "reward_std", "reward_min", "reward_q25", "reward_median", "reward_q75", "reward_max"):  # fmt: skip
        assert sorted(ended.series(name)) == [1, 2, 3, 4], name
    assert sorted(ended.series("eval_reward")) == sorted(ended.series("eval_accuracy")) == [2, 4]
    sample = next(e for e in ended.of("sample") if e["step"] == 1)
    assert sample["prompt"] in {r.prompt.shown for r in ppo.judged[0]}
    assert sample["advantage"] is not None
    assert [(c["step"], c["last"]) for c in ended.of("checkpoint")] == [
        (0, False),
        (2, False),
        (4, True),
    ]
    for step in (0, 2, 4):
        folder = ended.checkpoint_dir / f"checkpoint-{step}"
        assert checkpoint_store.verify(folder) is None
        assert (folder / "v_head.safetensors").exists()
    assert "[INFO] Step 3/4: loss=" in capfd.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_loads_as_a_plain_model(ppo: PpoRunner, kind: dict[str, Any]) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ended = ppo("run", {"max_steps": 3, "learning_rate": 1e-2, **kind})
    folder = Path(ended.result["last_checkpoint"])
    base = AutoModelForCausalLM.from_pretrained(ppo.runner.tiny)
    ids = AutoTokenizer.from_pretrained(folder)("12+3=", return_tensors="pt").input_ids
    with torch.no_grad():
        before = base(ids).logits
        loaded, info = (
            (PeftModel.from_pretrained(base, folder), {})
            if kind
            else AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        )
        assert not torch.equal(loaded(ids).logits, before)
    assert not info.get("unexpected_keys")  # the value head lies apart
    assert not info.get("missing_keys")
    assert (folder / "model.safetensors").exists() is not bool(kind)
    head = weights(folder)["v_head.safetensors:weight"]
    assert tuple(head.shape) == (1, base.config.hidden_size)
    assert head.abs().sum() > 0
    assert not weights(ended.checkpoint_dir / "checkpoint-0")["v_head.safetensors:weight"].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_exactly(
    ppo: PpoRunner, kind: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    config = GOING_ON | kind
    held_out = {"eval_data_path": str(ppo.runner.held_out)}
    whole = ppo("whole", config, **held_out)
    assert whole.result["step"] == 7, whole.result

    def dies(call: int, _place: int, rollout: Rollout) -> float:
        if call == 5:  # in the middle of the sixth step, with two checkpoints behind it
            os.kill(os.getpid(), signal.SIGKILL)
        return by_ascii(call, _place, rollout)

    ppo.judged.clear()
    ppo.verdict = dies
    child = os.fork()
    if child == 0:
        try:
            ppo("killed", config, **held_out)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    ppo.verdict = by_ascii
    newest = checkpoint_store.newest_readable(ppo.runner.root / "killed" / "checkpoints")
    assert newest is not None
    assert newest.step == 4
    rest = ppo("killed", config, 2, resume_from=str(newest.path), **held_out)
    same(whole, rest, 4)
    assert "missing keys" not in capfd.readouterr().out  # a tied weight is written once
    last = [Path(e.result["last_checkpoint"]) for e in (whole, rest)]
    for name, value in weights(last[0]).items():
        assert (weights(last[1])[name] == value).all(), name


@pytest.mark.parametrize("during", [2, 3], ids=["in an epoch", "at its beginning"])
def test_a_stop_gives_the_step_up_and_the_rest_follows_exactly(ppo: PpoRunner, during: int) -> None:
    whole = ppo("whole", GOING_ON | {"save_steps": 100})

    def asks(call: int, _place: int, rollout: Rollout) -> float:
        if call == during:
            (attempt / "stop.json").write_text('{"mode": "pause"}')
            os.kill(os.getpid(), signal.SIGTERM)
        return by_ascii(call, _place, rollout)

    attempt = ppo.runner.root / "stopped" / "attempts" / "1"
    ppo.judged.clear()
    ppo.verdict = asks
    ended = ppo("stopped", GOING_ON | {"save_steps": 100})
    assert (ended.code, ended.result["outcome"], ended.result["stop_cause"]) == (
        0,
        "stopped",
        "pause",
    )
    assert ended.result["step"] == during
    assert len(ppo.judged) == during + 1
    assert ended.steps_on_disk() == [0, during]
    assert ended.of("checkpoint")[-1]["last"]
    ppo.verdict = by_ascii
    rest = ppo(
        "stopped", GOING_ON | {"save_steps": 100}, 2, resume_from=ended.result["last_checkpoint"]
    )
    same(whole, rest, during)


def test_a_stop_in_the_first_step_leaves_what_was_there(ppo: PpoRunner) -> None:
    def asks(_call: int, _place: int, _rollout: Rollout) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0.0

    ppo.verdict = asks
    ended = ppo("run", {"max_steps": 3})
    assert (ended.result["outcome"], ended.result["step"]) == ("stopped", 0)
    assert ended.steps_on_disk() == [0]


def test_sampling_gives_way_at_the_next_token(ppo: PpoRunner) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from services.gpu_agent.trainers.ppo_rollout import Sampler
    from services.gpu_agent.trainers.rollouts import RolloutPrompt

    tokens: list[float] = []

    def should_stop() -> bool:
        tokens.append(time.monotonic())
        return len(tokens) >= 3

    model = AutoModelForCausalLM.from_pretrained(ppo.runner.tiny)
    tokenizer = AutoTokenizer.from_pretrained(ppo.runner.tiny)
    sampler = Sampler(
        model, tokenizer, temperature=1.0, top_p=1.0, max_completion=500, micro_batch=1, should_stop=should_stop
    )  # fmt: skip
    prompts = [RolloutPrompt(0, "1+1=", tuple(tokenizer("1+1=").input_ids), "1+1=")] * 4
    assert sampler.sample(model, prompts) is None
    assert len(tokens) <= 4


def test_after_memory_ran_out_less_is_written_and_learned_from_at_once(ppo: PpoRunner) -> None:
    from types import SimpleNamespace

    from services.gpu_agent.trainers.ppo import micro_batch, written_at_once
    from services.gpu_agent.trainers.settings import PpoSettings

    chosen = PpoSettings(batch_size=4, rollout_n=4, ppo_minibatches=2)
    found = []
    for halvings in range(4):
        session: Any = SimpleNamespace(settings=chosen, spec=SimpleNamespace(oom_halvings=halvings))
        found.append((written_at_once(session), micro_batch(session)))
    assert found == [(16, 8), (4, 4), (2, 2), (1, 1)]
    halved = ppo("halved", {"max_steps": 1, "ppo_minibatches": 2}, oom_halvings=1)
    assert halved.result["step"] == 1, halved.result
    assert len(halved.of("sample")) == 10


def test_no_verdict_is_not_zero(ppo: PpoRunner) -> None:
    """Half of the completions have no verdict; counted as zero they would teach something else."""
    config = {"max_steps": 2, "ppo_epochs": 1, "min_valid_reward_rate": 0.0}

    def half(other: float | None) -> Any:
        return lambda call, place, rollout: by_ascii(call, place, rollout) if place % 2 else other

    ppo.verdict = half(None)
    masked = ppo("masked", config)
    ppo.verdict = half(0.0)
    zero = ppo("zero", config)
    assert masked.series("valid_reward_rate")[1] == 0.5
    assert zero.series("valid_reward_rate")[1] == 1.0
    assert masked.series("reward")[1] > zero.series("reward")[1]
    assert masked.series("value_loss")[1] > zero.series("value_loss")[1]
    assert all(e["advantage"] == 0.0 for e in masked.of("sample") if e["reward"] is None)


def test_a_step_without_any_verdict_moves_no_weight(ppo: PpoRunner) -> None:
    ppo.verdict = lambda call, place, r: None if call in (2, 3) else by_ascii(call, place, r)
    config = {"max_steps": 5, "save_steps": 1, "save_total_limit": 20, "weight_decay": 0.5,
              "min_valid_reward_rate": 0.0, "learning_rate": 1e-2}  # fmt: skip
    ended = ppo("run", config)
    assert ended.code == 0, ended.result
    saved = [weights(ended.checkpoint_dir / f"checkpoint-{step}") for step in range(6)]
    changed = [
        any((saved[step][name] != value).any() for name, value in saved[step - 1].items())
        for step in range(1, 6)
    ]
    assert changed == [True, True, False, False, True]
    assert ended.series("loss")[3] == 0.0
    assert ended.series("valid_reward_rate")[3] == 0.0


def test_no_verdict_for_five_steps_pauses_the_run(ppo: PpoRunner) -> None:
    ppo.verdict = lambda call, place, r: None if call else by_ascii(call, place, r)
    ended = ppo("run", {"max_steps": 50})
    assert (ended.code, ended.result["reason"], ended.result["step"]) == (
        1,
        "reward_unavailable",
        6,
    )
    assert ended.of("checkpoint")[-1]["step"] == 6


def test_what_cannot_be_meant_is_said_before_training(ppo: PpoRunner) -> None:
    ppo.verdict = constant(1.0)
    ended = ppo("run", {"max_steps": 1, "batch_size": 0})
    assert (ended.code, ended.result["reason"]) == (1, "config_invalid")


def test_weights_that_are_lost_end_the_run(ppo: PpoRunner) -> None:
    ended = ppo("run", {"max_steps": 20, "learning_rate": 1e30})
    assert (ended.code, ended.result["reason"]) == (1, "nan_loss"), ended.result
    assert ended.result["step"] < 20
    assert all(v.isfinite().all() for v in weights(Path(ended.result["last_checkpoint"])).values())


def test_the_reward_service_of_the_host_is_asked(runner: Runner, rules_file: str) -> None:
    """Nothing stands in for anything: rules by HTTP, rows without a solution have no verdict."""
    rows = [{"prompt": f"{n}+1=", **({"solution": str(n + 1)} if n % 2 else {})} for n in range(16)]
    write_jsonl(runner.train, rows)
    config = BASE | {"max_steps": 2, "batch_size": 8, "min_valid_reward_rate": 0.0}
    ended = runner("run", config, algorithm="ppo", rules_file=rules_file)
    assert ended.code == 0, ended.result
    rates = ended.series("valid_reward_rate")
    assert sum(rates.values()) == pytest.approx(1.0)  # half of one epoch's rows
    assert any(0 < rate < 1 for rate in rates.values())
    assert all(e["reward"] is None for e in ended.of("sample") if e["reference"] is None)


def test_a_trained_reward_model_judges(runner: Runner, rules_file: str) -> None:
    pairs = PairRunner(runner, "reward_model")
    judge = pairs("judge", {"max_steps": 20, "batch_size": 4, "learning_rate": 2e-3})
    assert judge.code == 0, judge.result
    config = {key: value for key, value in BASE.items() if key != "reward_fn_type"}
    ended = runner(
        "run",
        config | {"max_steps": 2, "reward_model_type": "model", "reward_model_path": "judge"},
        algorithm="ppo",
        rules_file=rules_file,
        model_paths={"reward_model_path": judge.result["last_checkpoint"]},
    )
    assert ended.code == 0, ended.result
    assert ended.series("valid_reward_rate") == {1: 1.0, 2: 1.0}
    assert ended.series("reward_std")[1] > 0
    assert ended.series("value_loss")[1] > 0
