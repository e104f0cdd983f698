"""Two CPU ranks over gloo train one model: with DDP each has all of it, with FSDP a part."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.gpu_agent import checkpoint_store
from tests.integration.trainers.conftest import write_jsonl
from tests.integration.trainers.preference import pairs

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]

TWO = {"gpus": [{"index": 0}, {"index": 1}], "threads": 2}
CONFIG = {
    "max_steps": 4,
    "save_steps": 2,
    "eval_steps": 4,
    "eval_generate": True,
    "eval_samples": 5,
}


@pytest.fixture
def two(runner):
    """Run an attempt as the shim does for a job with two GPUs."""

    def run(job, config, attempt=1, **fields):
        attempt_dir = runner.prepare(job, CONFIG | config, attempt, **TWO, **fields)
        command = [
            sys.executable,
            "-P",
            "-m",
            "services.gpu_agent.trainers.torchrun",
            str(attempt_dir),
        ]
        with (attempt_dir / "log").open("wb") as log:
            done = subprocess.run(command, stdout=log, stderr=log, timeout=500, check=False)
        return runner.read(job, attempt, done.returncode)

    return run


def compare(whole, again, step):
    """Every metric after `step` is the same to the last bit."""
    for name in ("loss", "grad_norm", "learning_rate", "num_tokens", "eval_loss", "eval_accuracy"):
        expected = {s: v for s, v in whole.series(name).items() if s > step}
        assert {s: v - again.series(name)[s] for s, v in expected.items()} == dict.fromkeys(
            expected, 0.0
        ), name


def test_ddp_is_one_run_with_twice_the_batch(runner, two):
    held_out = {"eval_data_path": str(runner.held_out)}
    whole = two("ddp", {"batch_size": 2}, **held_out)
    assert (whole.code, whole.result["outcome"], whole.result["step"]) == (0, "completed", 4)
    assert [e["step"] for e in whole.of("metric") if "loss" in e["metrics"]] == [1, 2, 3, 4]
    assert whole.steps_on_disk() == [0, 2, 4]
    files = {p.name for p in (whole.checkpoint_dir / "checkpoint-2").iterdir()}
    assert files >= {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt", "model.safetensors"}
    log = (whole.attempt_dir / "log").read_text()
    assert log.count("[INFO] Step 1/4") == 1

    # batch_size counts rows of a device: the same rows make the same steps in one process with four
    alone = runner("alone", CONFIG | {"batch_size": 4}, **held_out)
    for name in ("loss", "grad_norm"):
        assert whole.series(name) == pytest.approx(alone.series(name), rel=1e-4)
    assert whole.series("num_tokens") == alone.series("num_tokens")

    start = whole.checkpoint_dir / "checkpoint-2"
    compare(whole, two("again", {"batch_size": 2}, 2, resume_from=str(start), **held_out), 2)


def test_fsdp_saves_whole_weights_and_goes_on_exactly(runner, two):
    held_out = {"eval_data_path": str(runner.held_out)}
    config = {"distribution": "fsdp", "batch_size": 2}
    whole = two("fsdp", config, **held_out)
    assert (whole.code, whole.result["outcome"]) == (0, "completed")
    last = checkpoint_store.newest_readable(whole.checkpoint_dir)
    assert last is not None
    assert last.step == 4
    # what saves the model first leaves the optimizer as it was: the steps are those of one process
    alone = runner("alone", CONFIG | {"batch_size": 4}, **held_out)
    for name in ("loss", "grad_norm"):
        assert whole.series(name) == pytest.approx(alone.series(name), rel=1e-4)
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    mine, theirs = (
        load_file(e.checkpoint_dir / "checkpoint-4" / "model.safetensors") for e in (whole, alone)
    )
    assert mine.keys() == theirs.keys()  # tied weights once, nothing by halves
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in theirs.items()}
    assert not list(last.path.glob("pytorch_model*"))
    AutoModelForCausalLM.from_pretrained(last.path)

    start = whole.checkpoint_dir / "checkpoint-2"
    compare(whole, two("again", config, 2, resume_from=str(start), **held_out), 2)


@pytest.mark.nightly
@pytest.mark.parametrize("distribution", ["ddp", "fsdp"])
def test_lora_on_two_ranks_from_the_start_and_from_a_checkpoint(runner, two, distribution):
    config = {"distribution": distribution, "lora_enabled": True, "eval_generate": False}
    whole = two("lora", config)
    assert whole.code == 0
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(whole.checkpoint_dir / "checkpoint-4")
    for step in (0, 2):
        start = whole.checkpoint_dir / f"checkpoint-{step}"
        again = two(f"from{step}", config, 2, resume_from=str(start))
        compare(whole, again, step)


@pytest.mark.nightly
def test_fsdp_goes_on_exactly_from_before_the_first_step(runner, two):
    config = {"distribution": "fsdp", "eval_generate": False}
    whole = two("fsdp", config)
    again = two("again", config, 2, resume_from=str(whole.checkpoint_dir / "checkpoint-0"))
    compare(whole, again, 0)


@pytest.mark.nightly
@pytest.mark.parametrize("distribution", ["ddp", "fsdp"])
def test_two_ranks_divide_the_completions_of_a_step_and_one_asks_for_all(
    runner, two, rules_file, distribution
):
    """A group straddles the ranks: three completions of each of two prompts are three a rank."""
    rows = [{"prompt": f"{n}+{n}=", "solution": str(2 * n)} for n in range(12)]
    path = write_jsonl(runner.root / "prompts.jsonl", rows)
    config = {
        "distribution": distribution,
        "batch_size": 2,
        "rollout_n": 3,
        "max_completion_length": 8,
        "kl_coef": 0.05,
        "reward_fn_type": "self_play",
    }
    fields = {
        "algorithm": "gspo",
        "rules_file": rules_file,
        "train_data_path": str(path),
        "eval_data_path": str(path),
    }
    whole = two("whole", config, **fields)
    assert (whole.code, whole.result["step"]) == (0, 4), (whole.attempt_dir / "log").read_text()
    assert sorted(whole.series("win_rate")) == [1, 2, 3, 4]
    assert set(whole.series("valid_reward_rate").values()) == {1.0}
    assert whole.series("eval_accuracy") == {4: 0.0}
    trained = [s for s in whole.of("sample") if s["advantage"] is not None]
    assert len(trained) == 4 * 6
    assert [s["prompt"] for s in trained[:3]] == [trained[0]["prompt"]] * 3
    start = whole.checkpoint_dir / "checkpoint-2"
    again = two("again", config, 2, resume_from=str(start), **fields)
    for name in ("loss", "grad_norm", "reward", "kl_divergence"):
        expected = {s: v for s, v in whole.series(name).items() if s > 2}
        assert {s: v - again.series(name)[s] for s, v in expected.items()} == {3: 0.0, 4: 0.0}, name


ROLLOUTS = {
    "batch_size": 2,
    "rollout_n": 4,
    "max_completion_length": 8,
    "context_length": 64,
    "eval_generate": False,
    "reward_fn_type": "rule_based",
    "reward_fn_config": {
        "rules": [{"name": "short", "rule": "length_chars", "max": 1, "soft": 12}]
    },
}


@pytest.mark.nightly
def test_two_ranks_of_ppo_share_the_prompts_of_a_step(runner, two, rules_file):
    rows = [{"prompt": f"{n}+{n}=", "solution": str(2 * n)} for n in range(12)]
    prompts = str(write_jsonl(runner.root / "prompts.jsonl", rows))
    given = {"algorithm": "ppo", "rules_file": rules_file, "train_data_path": prompts}
    config = ROLLOUTS
    held_out = {"eval_data_path": str(write_jsonl(runner.root / "held_out.jsonl", rows[:4]))}
    whole = two("whole", config, **given, **held_out)
    assert (whole.code, whole.result["step"]) == (0, 4), (whole.attempt_dir / "log").read_text()
    assert sorted(whole.series("reward")) == [1, 2, 3, 4]  # each step once
    # batch_size counts the prompts of all ranks together: 2 x 4 completions a step, each said once
    assert len([s for s in whole.of("sample") if s["step"] == 1]) == 8
    assert whole.series("valid_reward_rate")[1] == 1.0
    assert 4 in whole.series("eval_reward")
    start = whole.checkpoint_dir / "checkpoint-2"
    again = two("again", config, 2, resume_from=str(start), **given, **held_out)
    for name in ("loss", "reward", "grad_norm", "eval_reward"):
        expected = {s: v for s, v in whole.series(name).items() if s > 2}
        assert {s: again.series(name)[s] - v for s, v in expected.items()} == dict.fromkeys(
            expected, 0.0
        ), name


@pytest.mark.nightly
def test_what_ends_one_rank_is_the_reason_for_all(runner):
    config = CONFIG | {"max_steps": 4000, "save_steps": 2000, "eval_generate": False}
    attempt_dir = runner.prepare("memory", config, **TWO)
    command = [sys.executable, "-P", "-m", "services.gpu_agent.trainers.torchrun", str(attempt_dir)]
    events = attempt_dir / "events.jsonl"
    with (attempt_dir / "log").open("wb") as log:
        launcher = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 360
        while not (events.exists() and '"loss"' in events.read_text()):
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        of_launcher = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        second = next(
            int(pid)
            for pid in of_launcher
            if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
        )
        for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            resource.prlimit(second, limit, (1 << 20, 1 << 20))  # it gets no more memory
        assert launcher.wait(90) == 1
    finally:
        launcher.kill()
        launcher.wait()
    ended = runner.read("memory", 1, 1)
    assert (ended.result["outcome"], ended.result["reason"]) == ("failed", "host_oom")
    assert ended.result["message"].startswith("Rank 1: ")
    assert ended.result["step"] >= 1  # known to the first rank only


@pytest.mark.nightly
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("distribution", ["ddp", "fsdp"])
@pytest.mark.parametrize("algorithm", ["dpo", "reward_model"])
def test_two_ranks_share_the_pairs_of_a_step(runner, two, algorithm, distribution, lora):
    given = {
        "algorithm": algorithm,
        "train_data_path": str(write_jsonl(runner.root / "pairs.jsonl", pairs(24))),
        "eval_data_path": str(write_jsonl(runner.root / "held-out.jsonl", pairs(8, 40))),
    }
    config = {"eval_generate": False, "lora_enabled": lora, "distribution": distribution}
    whole = two("whole", config | {"batch_size": 2}, **given)
    assert whole.code == 0, whole.result
    alone = runner("alone", CONFIG | config | {"batch_size": 4}, **given)
    for name in ("loss", "reward_margin"):
        assert whole.series(name)[1] == pytest.approx(alone.series(name)[1], abs=1e-3)
    assert whole.series("num_tokens") == alone.series("num_tokens")
    assert 0.0 <= whole.series("eval_accuracy")[4] <= 1.0
    start = whole.checkpoint_dir / "checkpoint-2"
    again = two("again", config | {"batch_size": 2}, 2, resume_from=str(start), **given)
    for step in (3, 4):
        assert again.series("loss")[step] - whole.series("loss")[step] == 0.0
