"""One SFT attempt from spec to result with the real TRL: what it says, saves, and how it ends."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from services.gpu_agent import checkpoint_store

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # those of torch, transformers and trl are not ours
]

HEADLINES = {"loss", "learning_rate", "grad_norm", "epoch", "tokens_per_second"}

LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import PeftModel
tiny, full, lora = sys.argv[1:]
out = {}
model = AutoModelForCausalLM.from_pretrained(full)
tokenizer = AutoTokenizer.from_pretrained(full)
ids = tokenizer("12+3=", return_tensors="pt").input_ids
out["full"] = model(ids).logits.abs().sum().item()
base = AutoModelForCausalLM.from_pretrained(tiny)
out["base"] = base(ids).logits.abs().sum().item()
tokenizer = AutoTokenizer.from_pretrained(lora)
out["template"] = bool(tokenizer.chat_template)
out["lora"] = PeftModel.from_pretrained(base, lora)(ids).logits.abs().sum().item()
out["auto"] = AutoModelForCausalLM.from_pretrained(lora)(ids).logits.abs().sum().item()
print(json.dumps(out))
"""


def test_a_run_says_saves_and_can_be_loaded_elsewhere(runner, capfd):
    config = {"max_steps": 12, "eval_generate": True, "eval_samples": 5}
    ended = runner("full", config, eval_data_path=str(runner.held_out))
    log = capfd.readouterr().out
    assert ended.code == 0
    result = ended.result
    assert (result["outcome"], result["reason"], result["stop_cause"]) == ("completed", None, None)
    assert (result["step"], result["total_steps"]) == (12, 12)
    assert set(result["final_metrics"]) >= HEADLINES | {"eval_loss", "eval_accuracy"}
    assert result["last_checkpoint"].endswith("checkpoint-12")

    assert sorted(ended.series("loss")) == list(range(1, 13))
    assert all(set(e["metrics"]) >= HEADLINES for e in ended.of("metric") if "loss" in e["metrics"])
    assert ended.series("loss")[12] < ended.series("loss")[1]
    assert sorted(ended.series("eval_loss")) == sorted(ended.series("eval_accuracy")) == [5, 10, 12]
    assert all(rate > 0 for rate in ended.series("tokens_per_second").values())
    assert {e["name"] for e in ended.of("phase")} == {
        "loading_model",
        "tokenizing",
        "training",
        "evaluating",
        "saving",
    }
    assert ended.of("progress")[0]["eta_seconds"] is None
    assert (ended.of("progress")[-1]["step"], ended.of("progress")[-1]["total_steps"]) == (12, 12)
    sample = ended.of("sample")[0]
    assert (sample["prompt"], sample["reference"], sample["reward"]) == (
        "30+3=",
        "\\boxed{33}",
        0.0,
    )

    assert "[INFO] Step 10/12: loss=" in log
    assert f"[INFO] Checkpoint saved to: {ended.checkpoint_dir / 'checkpoint-12'}" in log
    assert "'loss'" not in log  # the trainer's own printing is off

    check_checkpoints(ended)


def check_checkpoints(ended):
    saved = ended.of("checkpoint")
    assert [(c["step"], c["last"]) for c in saved] == [
        (0, False),
        (5, False),
        (10, False),
        (12, True),
    ]
    for event in saved:
        on_disk = checkpoint_store.read(ended.checkpoint_dir / f"checkpoint-{event['step']}")
        assert on_disk.manifest_hash == event["manifest_hash"]
        assert checkpoint_store.verify(on_disk.path) is None
    assert saved[1]["best"]  # the first evaluation is the best so far
    assert not any(p.name.startswith(".tmp") for p in ended.checkpoint_dir.iterdir())
    assert not (ended.checkpoint_dir / "checkpoint-12" / "training_args.bin").exists()


def test_a_full_and_a_lora_checkpoint_load_in_another_process(runner):
    full = runner("full", {"max_steps": 2})
    result = full.result
    lora = runner("lora", {"max_steps": 4, "lora_enabled": True, "learning_rate": 1e-2})
    assert lora.code == 0
    assert {c["kind"] for c in lora.of("checkpoint")} == {"lora"}
    last = lora.checkpoint_dir / "checkpoint-4"
    assert not (last / "model.safetensors").exists()
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(runner.tiny), result["last_checkpoint"], str(last)],
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert loaded["template"]
    assert loaded["lora"] == loaded["auto"]
    assert len({loaded["full"], loaded["base"], loaded["lora"]}) == 3


@pytest.mark.parametrize(
    "extra", [{}, {"lora_enabled": True, "lora_dropout": 0.2}], ids=["full", "lora"]
)
def test_a_resumed_run_gives_the_very_same_losses(runner, extra, capfd):
    config = {
        "num_epochs": 2,
        "batch_size": 3,
        "gradient_accumulation_steps": 2,
        "save_steps": 3,
        "eval_steps": 2,
        "save_total_limit": 20,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        **extra,
    }
    whole = runner("whole", config, eval_data_path=str(runner.held_out))
    assert whole.result["total_steps"] == 8
    for step in (0, 3, 6):  # before the first step, in the middle of an epoch, in the second epoch
        start = whole.checkpoint_dir / f"checkpoint-{step}"
        again = runner(
            f"from{step}", config, 2, resume_from=str(start), eval_data_path=str(runner.held_out)
        )
        assert again.code == 0
        for name in ("loss", "grad_norm", "learning_rate", "num_tokens", "epoch", "eval_loss"):
            expected = {s: v for s, v in whole.series(name).items() if s > step}
            assert {s: v - again.series(name)[s] for s, v in expected.items()} == dict.fromkeys(
                expected, 0.0
            ), name
        rates = again.series("tokens_per_second").values()
        assert 0 < max(rates) < 20 * max(whole.series("tokens_per_second").values())
        assert again.of("checkpoint")[-1]["last"]
    assert "missing keys" not in capfd.readouterr().out  # a tied weight is written once


def test_a_stop_saves_at_the_end_of_the_step_and_the_rest_follows_exactly(runner):
    config = {
        "max_steps": 400,
        "save_steps": 1000,
        "eval_steps": 1,
        "learning_rate": 1e-4,
        "packing": False,
    }
    attempt_dir = runner.prepare("stopped", config, eval_data_path=str(runner.held_out))
    events = attempt_dir / "events.jsonl"

    def stop_after_some_steps():
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            if events.exists() and events.read_text().count('"loss"') >= 3:
                (attempt_dir / "stop.json").write_text('{"mode": "pause"}')
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.005)

    from services.gpu_agent.trainers.entry import run_attempt

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop_after_some_steps)
    thread.start()
    code = run_attempt(attempt_dir, {})
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
    ended = runner.read("stopped", 1, code)
    step = ended.result["step"]
    assert code == 0
    assert (ended.result["outcome"], ended.result["stop_cause"]) == ("stopped", "pause")
    assert 1 <= step < 400
    assert ended.steps_on_disk() == [0, step] or step - 1 in ended.steps_on_disk()
    assert ended.of("checkpoint")[-1]["step"] == step
    assert ended.of("checkpoint")[-1]["last"]

    # the evaluation that the stop cut short is made up for, so that no point is missing
    config["max_steps"] = step + 2
    config["lr_scheduler_type"] = "constant"
    rest = runner(
        "stopped",
        config,
        2,
        eval_data_path=str(runner.held_out),
        resume_from=ended.result["last_checkpoint"],
    )
    assert rest.code == 0
    evaluated = sorted({*ended.series("eval_loss"), *rest.series("eval_loss")})
    assert evaluated == list(range(1, step + 3))


def test_a_target_ends_the_run_as_completed(runner):
    runner.train.write_text("".join(runner.train.read_text().splitlines(keepends=True)[:2]))
    config = {
        "max_steps": 300,
        "learning_rate": 1e-2,
        "eval_steps": 20,
        "save_steps": 1000,
        "eval_generate": True,
        "stop_metric": "eval_accuracy",
        "stop_value": 1.0,
    }
    ended = runner("target", config, eval_data_path=str(runner.train))
    result = ended.result
    assert (result["outcome"], result["reason"], result["stop_cause"]) == (
        "completed",
        "target_reached",
        "stop_metric",
    )
    assert result["final_metrics"]["eval_accuracy"] == 1.0
    assert result["step"] < 300
    last = ended.of("checkpoint")[-1]
    assert (last["step"], last["best"], last["last"]) == (result["step"], True, True)
    assert ended.of("sample")[-1]["reward"] == 1.0


def test_patience_ends_the_run_and_the_best_is_kept(runner):
    config = {
        "max_steps": 200,
        "learning_rate": 0.3,  # far too high: it gets worse after a while
        "eval_steps": 2,
        "save_steps": 2,
        "save_total_limit": 1,
        "early_stopping_patience": 3,
    }
    ended = runner("patience", config, eval_data_path=str(runner.held_out))
    result = ended.result
    assert (result["outcome"], result["reason"]) == ("completed", "early_stopped")
    losses = ended.series("eval_loss")
    best = min(losses, key=lambda step: (losses[step], step))
    assert result["step"] == best + 6
    deleted = {e["step"] for e in ended.of("checkpoint_deleted")}
    assert ended.steps_on_disk() == sorted({0, best, result["step"] - 2, result["step"]})
    assert deleted == {e["step"] for e in ended.of("checkpoint")} - set(ended.steps_on_disk())


def test_the_time_limit_ends_the_run_with_a_checkpoint(runner):
    ended = runner(
        "limit", {"max_steps": 100_000, "time_limit_minutes": 0.01, "save_steps": 100_000}
    )
    result = ended.result
    assert (ended.code, result["outcome"], result["reason"]) == (1, "failed", "time_limit")
    assert 0 < result["step"] < 100_000
    assert ended.steps_on_disk() == [0, result["step"]]
    assert ended.of("checkpoint")[-1]["last"]


def test_nan_is_on_record_and_ends_the_run(runner, capfd):
    ended = runner(
        "nan", {"max_steps": 50, "learning_rate": 1e30, "save_steps": 1, "save_total_limit": 50}
    )
    result = ended.result
    assert (ended.code, result["outcome"], result["reason"]) == (1, "failed", "nan_loss")
    lost = [e for e in ended.of("metric") if e.get("nonfinite")]
    assert lost
    assert lost[-1]["metrics"]["loss"] is None or lost[-1]["metrics"]["grad_norm"] is None
    assert result["step"] < 50
    kept = checkpoint_store.newest_readable(ended.checkpoint_dir)
    assert kept is not None
    assert str(kept.path) == result["last_checkpoint"]
    from safetensors.torch import load_file

    assert all(t.isfinite().all() for t in load_file(kept.path / "model.safetensors").values())
    assert "[ERROR] The loss or the gradient became NaN" in capfd.readouterr().out
    assert math.isfinite(max(v for v in ended.series("loss").values() if v is not None))


def test_packing_trains_on_fewer_longer_sequences(runner):
    plain = runner("plain", {"num_epochs": 1, "batch_size": 1})
    packed = runner("packed", {"num_epochs": 1, "batch_size": 1, "packing": True, "context_length": 256},
                    eval_data_path=str(runner.held_out))  # fmt: skip
    assert packed.code == 0
    assert packed.result["total_steps"] < plain.result["total_steps"] == 24
    assert packed.series("num_tokens")[packed.result["step"]] == plain.series("num_tokens")[24]


@pytest.mark.parametrize("mode", ["merge", "continue"])
def test_a_lora_checkpoint_is_merged_or_continued(runner, mode):
    first = runner("first", {"max_steps": 6, "lora_enabled": True, "learning_rate": 2e-2})
    source = first.result["last_checkpoint"]
    config = {
        "max_steps": 2,
        "lora_enabled": True,
        "lora_from_checkpoint": mode,
        "learning_rate": 1e-6,
    }
    ended = runner("second", config, model_path=source)
    assert ended.code == 0, ended.result
    # it goes on where the first left off, not where the base model stood
    assert abs(ended.series("loss")[1] - first.series("loss")[6]) < abs(
        ended.series("loss")[1] - first.series("loss")[1]
    )
    adapter = json.loads(
        (ended.checkpoint_dir / "checkpoint-2" / "adapter_config.json").read_text()
    )
    base = adapter["base_model_name_or_path"]
    assert base == (
        str(ended.checkpoint_dir / "base-model") if mode == "merge" else str(runner.tiny)
    )
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(ended.checkpoint_dir / "checkpoint-2")


def test_full_fine_tuning_on_a_lora_checkpoint_saves_whole_weights(runner):
    first = runner("first", {"max_steps": 2, "lora_enabled": True})
    ended = runner("second", {"max_steps": 2}, model_path=first.result["last_checkpoint"])
    assert ended.code == 0, ended.result
    assert (ended.checkpoint_dir / "checkpoint-2" / "model.safetensors").exists()
    assert not (ended.checkpoint_dir / "checkpoint-2" / "adapter_config.json").exists()


def test_bf16_on_the_cpu_trains_or_says_why_not(runner):
    """Cold: whether oneDNN may use AMX is settled at its first product, so the test's own process cannot show it."""
    attempt_dir = runner.prepare("half", {"max_steps": 3, "batch_size": 4, "precision": "bf16"})
    done = subprocess.run(
        [sys.executable, "-m", "services.gpu_agent.trainers", str(attempt_dir)],
        stdout=subprocess.DEVNULL,
        timeout=480,
        check=False,
    )
    assert done.returncode in (0, 1)  # never a signal
    ended = runner.read("half", 1, done.returncode)
    assert ended.result["outcome"] == "completed" or "bf16" in ended.result["message"]
    if ended.code == 0:
        assert ended.series("loss")[3] < ended.series("loss")[1]
