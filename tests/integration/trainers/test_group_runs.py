"""GRPO and GSPO from spec to result with the real TRL and the real rules: what they say, learn from, skip, and resume."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
import os
import signal
import subprocess
import sys
import time

import pytest

from services.gpu_agent.trainers import reward_calls
from tests.integration.trainers.conftest import write_jsonl

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # those of torch, transformers and trl are not ours
]

SHORT = {
    "reward_fn_type": "rule_based",
    "reward_fn_config": {
        "rules": [{"name": "short", "rule": "length_chars", "max": 1, "soft": 12}]
    },
}
"""A rule that tells the answers of an untrained model apart."""
BASE = {
    "batch_size": 2,
    "rollout_n": 4,
    "max_completion_length": 8,
    "context_length": 64,
    "max_steps": 4,
    "save_steps": 2,
    "eval_steps": 2,
    "learning_rate": 1e-3,
    **SHORT,
}
HEADLINES = {"loss", "learning_rate", "grad_norm", "reward", "reward_accuracy", "kl_divergence", "group_variance", "clipfrac", "entropy"}  # fmt: skip
DISTRIBUTION = {"reward_std", "reward_min", "reward_q25", "reward_median", "reward_q75", "reward_max", "completion_length", "truncated_rate", "zero_variance_rate", "valid_reward_rate", "reward_latency_s", "tokens_per_second"}  # fmt: skip


@pytest.fixture
def group(runner, rules_file):
    """Run an attempt of grpo or gspo on prompts of additions, the last without its solution."""
    rows = [{"prompt": f"{n}+{n}=", "solution": str(2 * n)} for n in range(12)]
    train = write_jsonl(runner.root / "prompts.jsonl", rows)

    def run(job, config=None, attempt=1, algorithm="grpo", **fields):
        given = {"algorithm": algorithm, "rules_file": rules_file, "train_data_path": str(train)}
        return runner(job, BASE | (config or {}), attempt, **(given | fields))

    run.train = train
    return run


def weights(ended, step):
    from safetensors.torch import load_file

    folder = ended.checkpoint_dir / f"checkpoint-{step}"
    name = "model.safetensors" if (folder / "model.safetensors").exists() else "adapter_model.safetensors"  # fmt: skip
    return load_file(folder / name)


def same(first, second):
    return all(first[name].equal(second[name]) for name in first)


def test_a_run_reports_samples_and_evaluates(group, capfd):
    config = {"eval_generate": True, "eval_samples": 3}
    ended = group("full", config, eval_data_path=str(group.train))
    log = capfd.readouterr().out
    assert ended.code == 0, log
    assert ended.result["step"] == 4
    assert set(ended.result["final_metrics"]) >= HEADLINES | DISTRIBUTION
    assert sorted(ended.series("reward")) == [1, 2, 3, 4]
    assert all(v == 1.0 for v in ended.series("valid_reward_rate").values())
    assert sorted(ended.series("eval_reward")) == sorted(ended.series("eval_accuracy")) == [2, 4]
    assert set(ended.series("clipfrac").values()) == {0.0}  # on-policy: nothing meets the bound
    assert 0 < max(ended.series("group_variance").values()) < 1

    samples = [s for s in ended.of("sample") if s["advantage"] is not None]
    assert [s["step"] for s in samples] == [n for n in (1, 2, 3, 4) for _ in range(8)]
    first = samples[:4]
    assert len({s["prompt"] for s in first}) == 1
    assert first[0]["prompt"].endswith("=")  # as people read it, without the chat template
    assert sum(s["advantage"] for s in first) == pytest.approx(0, abs=1e-3)
    best = max(first, key=lambda s: s["reward"])
    assert best["advantage"] == max(s["advantage"] for s in first)
    assert best["reference"] == str(2 * int(best["prompt"].split("+")[0]))
    assert "[INFO] Step 4/4: loss=" in log
    assert "reward=" in log
    check_loads(ended)


def check_loads(ended):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    last = ended.checkpoint_dir / "checkpoint-4"
    AutoModelForCausalLM.from_pretrained(last)
    assert AutoTokenizer.from_pretrained(last).chat_template
    assert not same(weights(ended, 0), weights(ended, 4))


@pytest.mark.parametrize("kind", ["full", "lora", "gspo"])
def test_a_resumed_run_gives_the_very_same_figures(group, kind):
    config = {"lora_enabled": kind == "lora", "kl_coef": 0.05, "gradient_accumulation_steps": 2}
    algorithm = "gspo" if kind == "gspo" else "grpo"
    whole = group("whole", config, algorithm=algorithm)
    start = whole.checkpoint_dir / "checkpoint-2"
    again = group("again", config, 2, algorithm=algorithm, resume_from=str(start))
    assert again.code == 0
    for name in ("loss", "grad_norm", "reward", "kl_divergence", "entropy", "num_tokens"):
        expected = {s: v for s, v in whole.series(name).items() if s > 2}
        assert {s: v - again.series(name)[s] for s, v in expected.items()} == {3: 0.0, 4: 0.0}, name
    assert same(weights(whole, 4), weights(again, 4))
    assert any(v > 0 for v in whole.series("kl_divergence").values())


def test_a_killed_run_goes_on_as_if_nothing_had_been(group, runner, rules_file):
    config = BASE | {"max_steps": 200, "save_steps": 2, "lr_scheduler_type": "constant"}
    fields = {
        "algorithm": "grpo",
        "rules_file": rules_file,
        "train_data_path": str(group.train),
    }
    attempt_dir = runner.prepare("killed", config, **fields)
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "services.gpu_agent.trainers", str(attempt_dir)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.getcwd()},  # noqa: PTH109
    ) as process:
        deadline = time.monotonic() + 360
        events = attempt_dir / "events.jsonl"
        while time.monotonic() < deadline and process.poll() is None:
            if events.exists() and '"step":5,' in events.read_text():
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert process.returncode == -signal.SIGKILL
    from services.gpu_agent import checkpoint_store

    kept = checkpoint_store.newest_readable(attempt_dir.parents[1] / "checkpoints")
    assert kept.step >= 4
    config = {"max_steps": kept.step + 2, "lr_scheduler_type": "constant"}
    rest = group("killed", config, 2, resume_from=str(kept.path))
    whole = group("whole", config)
    for name in ("loss", "reward", "grad_norm"):
        new = rest.series(name)
        assert sorted(new) == [kept.step + 1, kept.step + 2]
        assert [whole.series(name)[s] - v for s, v in new.items()] == [0.0, 0.0]


def test_a_step_that_nobody_could_judge_moves_no_weight(group, runner):
    """Momentum, weight decay, KL and entropy are all there to move them; a row without a solution has no verdict."""
    rows = [{"prompt": "1+1="} if n % 2 else {"prompt": f"{n}+1=", "solution": "1"} for n in range(12)]  # fmt: skip
    config = {
        "reward_fn_type": "math_verify",
        "reward_fn_config": {},
        "batch_size": 1,
        "max_steps": 8,
        "save_steps": 1,
        "save_total_limit": 20,
        "entropy_coef": 0.1,
        "weight_decay": 0.1,
        "kl_coef": 0.1,
    }
    path = write_jsonl(runner.root / "half.jsonl", rows)
    ended = group("half", config, algorithm="gspo", train_data_path=str(path))
    assert ended.code == 0
    rates = ended.series("valid_reward_rate")
    assert set(rates.values()) == {0.0, 1.0}
    moved = {s: not same(weights(ended, s - 1), weights(ended, s)) for s in rates}
    assert moved == {s: rate == 1.0 for s, rate in rates.items()}
    blank = [s for s, rate in rates.items() if rate == 0.0]
    assert {ended.series("loss")[s] for s in blank} == {ended.series("grad_norm")[s] for s in blank} == {0.0}  # fmt: skip
    assert not set(blank) & set(ended.series("reward"))


def test_a_completion_without_a_verdict_is_left_out_and_never_zero(group, runner, capfd):
    rows = [{"prompt": "1+1="} if n % 2 else {"prompt": f"{n}+1=", "solution": "1"} for n in range(12)]  # fmt: skip
    config = {
        "reward_fn_type": "math_verify",
        "reward_fn_config": {"no_answer_reward": 2.0},
        "batch_size": 6,
        "max_steps": 2,
        "min_valid_reward_rate": 0.0,
    }
    path = write_jsonl(runner.root / "half.jsonl", rows)
    ended = group("masked", config, algorithm="gspo", train_data_path=str(path))
    assert ended.code == 0
    assert 0 < ended.series("valid_reward_rate")[1] < 1
    assert ended.series("reward_min")[1] == ended.series("reward")[1] == 2.0
    lost = [s for s in ended.of("sample") if s["reward"] is None]
    assert lost
    assert {s["advantage"] for s in lost} == {0.0}
    log = capfd.readouterr().out
    assert "completions of this step got no reward (gold_missing" in log
    assert "All reward functions returned None" not in log


def test_a_run_without_rewards_pauses_with_a_checkpoint(group, runner, monkeypatch):
    monkeypatch.setattr(reward_calls, "AWAY_SECONDS", 0.0)
    config = {"max_steps": 50, "save_steps": 50, "weight_decay": 0.1}
    ended = group("away", config, rules_file=str(runner.root / "nowhere.json"))
    result = ended.result
    assert (ended.code, result["outcome"], result["reason"], result["stop_cause"]) == (
        1, "failed", "reward_unavailable", "reward_unavailable",
    )  # fmt: skip
    assert result["step"] == 5
    assert "service_away" in result["message"]
    assert result["message_zh"]
    assert ended.of("checkpoint")[-1]["step"] == 5
    assert same(weights(ended, 0), weights(ended, 5))


def test_self_play_has_a_win_rate_and_is_evaluated_where_it_can_be(group, runner, capfd):
    config = {"reward_fn_type": "self_play", "reward_fn_config": {}, "kl_coef": 0.0, "max_steps": 2}
    ended = group("vote", config, algorithm="gspo", eval_data_path=str(group.train))
    assert ended.code == 0
    assert set(ended.series("win_rate")) == set(ended.series("reward_majority_share")) == {1, 2}
    assert ended.series("kl_divergence") == {}
    assert ended.series("eval_reward") == {2: 0.0}  # against the solutions
    bare = write_jsonl(runner.root / "bare.jsonl", [{"prompt": f"{n}"} for n in range(8)])
    duels = {"reward_fn_config": {"mode": "pairwise"}}
    fields = {"train_data_path": str(bare), "eval_data_path": str(bare)}
    ended = group("duels", config | duels, algorithm="gspo", **fields)
    assert ended.code == 0
    assert 0.5 <= ended.series("win_rate")[1] <= 1
    assert ended.series("reward")[1] == pytest.approx(0.5)  # a duel won is a duel lost
    assert ended.series("eval_reward") == {}
    assert "Nothing is evaluated" in capfd.readouterr().out


def one_step(group, job, **config):
    ended = group(job, {"max_steps": 1, **config})
    assert ended.code == 0
    return ended


def completions(ended):
    return [s["completion"] for s in ended.of("sample")]


def test_every_parameter_of_sampling_and_of_the_objective_has_its_effect(group, runner, tiny):
    base = one_step(group, "base")
    assert base.series("kl_divergence")[1] == pytest.approx(0, abs=1e-6)
    cold = one_step(group, "cold", temperature=0.01)
    assert len(set(completions(cold))) < len(set(completions(base)))
    narrow = one_step(group, "narrow", top_p=0.01)
    assert len(set(completions(narrow))) < len(set(completions(base)))
    many = one_step(group, "many", rollout_n=6)
    assert len(completions(many)) == 12
    short = one_step(group, "short", max_completion_length=3)
    assert (short.series("completion_length_max")[1], base.series("completion_length_max")[1]) == (
        3.0,
        8.0,
    )
    tied = one_step(group, "tied", entropy_coef=0.5)
    assert not same(weights(tied, 1), weights(base, 1))
    assert "policy_loss" in tied.result["final_metrics"]


def test_a_chosen_reference_is_honoured_full_and_lora(group):
    other = group("other", {"max_steps": 4, "learning_rate": 1e-2})
    path = str(other.checkpoint_dir / "checkpoint-4")
    for kind in (False, True):
        config = {"kl_coef": 0.1, "max_steps": 1, "lora_enabled": kind}
        ended = group(f"tied{kind}", config, model_paths={"ref_model_path": path})
        assert ended.code == 0
        assert ended.series("kl_divergence")[1] > 1e-3


def test_after_memory_ran_out_less_is_written_and_learned_from_at_once(group, monkeypatch):
    from trl import GRPOTrainer

    sizes = []
    write = GRPOTrainer._generate_single_turn

    def counted(self, prompt_ids, *args, **kwargs):
        sizes.append(len(prompt_ids))
        return write(self, prompt_ids, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", counted)
    one_step(group, "all")
    assert sizes == [8]
    halved = group("halved", {"max_steps": 1}, oom_halvings=2)
    assert sizes[1:] == [2, 2, 2, 2]
    assert len(completions(halved)) == 8
    assert halved.result["step"] == 1


def test_clip_ratio_bounds_the_ratio(group, monkeypatch):
    """On-policy the ratio is 1; here the old probabilities are moved, as by an update in between."""
    from services.gpu_agent.trainers.group_trainer import GroupTrainer

    shares = {}
    step = GroupTrainer.training_step

    def moved(self, model, inputs, count=None):
        loss = step(self, model, inputs, count)
        batch = self._buffered_inputs[0]
        logprobs, _, _ = self._get_per_token_logps_and_entropies(
            model,
            *(
                __import__("torch").cat([batch[f"prompt_{k}"], batch[f"completion_{k}"]], 1)
                for k in ("ids", "mask")
            ),
            batch["completion_ids"].size(1),
        )
        self._metrics["train"]["clip_ratio/region_mean"].clear()
        old = logprobs.detach() - 0.4 * batch["advantages"].sign().unsqueeze(1)  # e^0.4 = 1.49
        self._compute_loss(model, batch | {"old_per_token_logps": old})
        shares[self.args.epsilon] = self._metrics["train"]["clip_ratio/region_mean"][-1]
        return loss

    monkeypatch.setattr(GroupTrainer, "training_step", moved)
    for clip in (0.2, 0.9):
        one_step(group, f"clip{clip}", clip_ratio=clip, learning_rate=1e-9)
    assert shares[0.2] > 0.2
    assert shares[0.9] == 0.0


def test_prompts_that_do_not_fit_are_counted_and_left_out(group, runner, capfd):
    rows = [{"prompt": "9" * (100 if n % 3 == 0 else 4), "solution": "1"} for n in range(12)]
    path = write_jsonl(runner.root / "long.jsonl", rows)
    ended = group("long", {"max_steps": 1}, train_data_path=str(path))
    assert ended.code == 0
    assert "4 of 12 prompts have more than" in capfd.readouterr().out
    assert all(len(s["prompt"]) == 4 for s in ended.of("sample"))
    none = group("none", {"context_length": 10}, train_data_path=str(path))
    assert (none.code, none.result["reason"]) == (1, "dataset_invalid")
    assert "No prompt of the train dataset fits" in none.result["message"]
    large = group("large", {"batch_size": 64})
    assert (large.code, large.result["reason"]) == (1, "config_invalid")
    assert "batch_size" in large.result["message"]


def test_answers_of_an_sft_run_are_judged_by_the_jobs_rule(group, runner):
    """By exact match no answer of an untrained model is right; the rule asks for text, and rows have other columns."""
    rows = [{"prompt": f"{n}=", "response": "1", "gold": "2"} for n in range(6)]
    path = write_jsonl(runner.root / "sft.jsonl", rows)
    config = {
        "max_steps": 1,
        "eval_steps": 1,
        "eval_generate": True,
        "reward_fn_config": {"rules": [{"name": "any", "rule": "length_chars"}]},
    }
    fields = {"train_data_path": str(path), "eval_data_path": str(path)}
    ended = group("sft", config, algorithm="sft", **fields)
    assert ended.code == 0
    assert ended.series("eval_accuracy") == {1: 1.0}
    assert ended.of("sample")[0]["reward"] == 1.0
    gold = {"reward_fn_type": "math_verify", "reward_fn_answer_key": "gold"}
    config |= gold | {"reward_fn_config": {"no_answer_reward": 1.0}}
    assert group("gold", config, algorithm="sft", **fields).series("eval_accuracy") == {1: 1.0}


def test_after_memory_ran_out_a_pass_holds_half_of_what_it_held(runner):
    from types import SimpleNamespace
    from typing import Any, cast

    from services.gpu_agent.trainers.group_trainer import _batch
    from services.gpu_agent.trainers.settings import RolloutSettings

    chosen = RolloutSettings(batch_size=4, rollout_n=4, gradient_accumulation_steps=4)
    found = []
    for halvings in range(3):
        spec = SimpleNamespace(algorithm="grpo", oom_halvings=halvings)
        context = SimpleNamespace(warning=lambda _: None)
        session = SimpleNamespace(settings=chosen, spec=spec, context=context)
        plan = _batch(cast(Any, session), 100)
        found.append((plan.per_device, plan.accumulation, plan.effective))
    assert found == [(4, 4, 16), (2, 8, 16), (1, 16, 16)]


def test_a_continued_adapter_is_tied_to_what_it_was_and_resumes_exactly(group):
    first = group("first", {"lora_enabled": True, "max_steps": 2, "learning_rate": 1e-2})
    config = {"lora_enabled": True, "lora_from_checkpoint": "continue", "kl_coef": 0.05}
    fields = {"model_path": str(first.checkpoint_dir / "checkpoint-2")}
    whole = group("whole", config, **fields)
    assert whole.code == 0
    assert whole.series("kl_divergence")[1] == pytest.approx(0, abs=1e-6)
    assert same(weights(whole, 0), weights(first, 2))
    start = whole.checkpoint_dir / "checkpoint-2"
    again = group("again", config, 2, resume_from=str(start), **fields)
    for name in ("loss", "grad_norm", "reward", "kl_divergence"):
        expected = {s: v for s, v in whole.series(name).items() if s > 2}
        assert {s: v - again.series(name)[s] for s, v in expected.items()} == {3: 0.0, 4: 0.0}, name
    merged = group(
        "merged", {"max_steps": 1}, **fields
    )  # full weights: the reference is merged too
    assert merged.series("kl_divergence")[1] == pytest.approx(0, abs=1e-6)
