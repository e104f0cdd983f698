"""DPO from spec to result with the real TRL: what it reports, what each parameter changes, and how it resumes."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
import math

import pytest

from services.gpu_agent import checkpoint_store
from tests.integration.trainers.conftest import write_jsonl
from tests.integration.trainers.preference import (
    PairRunner,
    assert_goes_on_after_a_kill,
    assert_resumes_exactly,
    pairs,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # those of torch, transformers and trl are not ours
]

HEADLINES = {"loss", "reward_chosen", "reward_rejected", "reward_margin", "accuracy"}
LORA = {"lora_enabled": True, "learning_rate": 1e-2}


@pytest.fixture
def dpo(runner):
    return PairRunner(runner, "dpo")


def test_a_run_reports_its_figures_and_learns_the_pairs(dpo, capfd):
    ended = dpo("full", {"max_steps": 10, "batch_size": 4}, evaluated=True)
    log = capfd.readouterr().out
    assert ended.code == 0, ended.result
    assert set(ended.result["final_metrics"]) >= HEADLINES | {
        "learning_rate",
        "grad_norm",
        "epoch",
        "tokens_per_second",
        "eval_loss",
        "eval_accuracy",
        "eval_reward_margin",
    }
    assert ended.series("loss")[1] == pytest.approx(math.log(2), abs=1e-4)
    assert ended.series("reward_margin")[1] == pytest.approx(0.0, abs=1e-4)
    assert ended.series("reward_margin")[10] > 0.1
    assert ended.series("eval_accuracy")[10] == 1.0
    assert ended.series("eval_reward_margin")[10] > ended.series("eval_reward_margin")[5] > 0
    assert [c["step"] for c in ended.of("checkpoint")] == [0, 5, 10]
    assert "eval_accuracy=1" in log
    for step in (0, 10):
        folder = ended.checkpoint_dir / f"checkpoint-{step}"
        assert checkpoint_store.verify(folder) is None
        from transformers import AutoModelForCausalLM

        AutoModelForCausalLM.from_pretrained(folder)


def test_every_pair_of_an_evaluation_counts_the_same(dpo):
    # nine pairs in batches of eight: the ninth alone is the last batch
    hard = [*pairs(8, 40), {"prompt": "1+1=", "chosen": "99 perhaps", "rejected": "\\boxed{2}"}]
    dpo.held_out = write_jsonl(dpo.runner.root / "hard.jsonl", hard)
    ended = dpo("weighed", {"max_steps": 10, "batch_size": 2}, evaluated=True)
    assert ended.series("eval_accuracy")[10] == pytest.approx(8 / 9)


def test_beta_scales_the_rewards(dpo):
    found = {}
    for beta in (0.1, 0.5):
        config = {"max_steps": 2, "lr_scheduler_type": "constant", "beta": beta, "optim": "sgd"}
        ended = dpo(f"beta{beta}", config | {"learning_rate": 1e-3, "max_grad_norm": 1e-3})
        found[beta] = ended.series("reward_margin")[2]
    # the clipped first step is the same for both, so its log-ratios are, and rewards are beta times those
    assert found[0.5] == pytest.approx(5 * found[0.1], rel=0.05)


def test_the_reference_is_the_one_that_was_asked_for(dpo):
    other = dpo.runner("other", {"max_steps": 3, "learning_rate": 1e-2})
    path = str(other.checkpoint_dir / "checkpoint-3")
    adapter = str(dpo.sft_lora())
    for extra in ({}, LORA):
        for number, reference in enumerate((path, adapter)):
            fields = {"model_paths": {"ref_model_path": reference}}
            ended = dpo(f"ref{number}{len(extra)}", {"max_steps": 1, **extra}, **fields)
            assert ended.code == 0, ended.result
            # the policy begins elsewhere than its reference, so the loss is not ln 2
            assert abs(ended.series("loss")[1] - math.log(2)) > 1e-3
            assert ended.series("reward_margin")[1] != 0


def test_lora_trains_the_adapter_alone_against_its_base(dpo):
    ended = dpo("lora", {"max_steps": 6, **LORA}, evaluated=True)
    assert ended.code == 0, ended.result
    assert {c["kind"] for c in ended.of("checkpoint")} == {"lora"}
    assert ended.series("loss")[1] == pytest.approx(math.log(2), abs=1e-4)
    assert ended.series("reward_margin")[6] > 0.1
    last = ended.checkpoint_dir / "checkpoint-6"
    assert not (last / "model.safetensors").exists()


def test_a_stage_goes_on_from_a_lora_checkpoint(dpo):
    start = dpo.sft_lora()
    began = []
    for how in ("merge", "continue", "full"):
        config = {"max_steps": 4, "learning_rate": 1e-2, "lora_enabled": how != "full"}
        config["lora_from_checkpoint"] = "merge" if how == "full" else how
        ended = dpo(how, config, model_path=str(start))
        assert ended.code == 0, ended.result
        # whichever way: the reference is what the stage began with, the adapter included
        assert ended.series("loss")[1] == pytest.approx(math.log(2), abs=1e-4)
        assert ended.series("reward_margin")[4] > 0.1
        began.append(ended.series("logps_chosen")[1])
        last = ended.checkpoint_dir / "checkpoint-4"
        assert (last / "adapter_config.json").exists() is (how != "full")
        assert not (last / "ref").exists()
    base = dpo("base", {"max_steps": 1}).series("logps_chosen")[1]
    assert began == pytest.approx([began[0]] * 3, rel=1e-4)
    assert abs(base - began[0]) > 0.1


def test_a_continued_adapter_resumes_exactly(dpo):
    continued = LORA | {"lora_from_checkpoint": "continue"}
    assert_resumes_exactly(dpo, continued, model_path=str(dpo.sft_lora()))


@pytest.mark.parametrize("extra", [{}, LORA | {"lora_dropout": 0.2}], ids=["full", "lora"])
def test_a_resumed_run_gives_the_very_same_figures(dpo, extra):
    assert_resumes_exactly(dpo, extra)


def test_answers_to_the_prompts_and_the_pairs_have_names_of_their_own(dpo):
    config = {"max_steps": 4, "eval_generate": True, "eval_samples": 3, "eval_steps": 4}
    ended = dpo("answers", config, evaluated=True)
    assert ended.code == 0, ended.result
    assert 0.0 <= ended.series("eval_accuracy")[4] <= 1.0
    assert ended.series("eval_pair_accuracy")[4] > 0.5
    sample = ended.of("sample")[0]
    assert sample["reference"].startswith("\\boxed{")


def test_long_pairs_are_cut_or_left_out_and_counted(dpo, capfd):
    long = [
        {"prompt": "1+1=", "chosen": "2" + "x" * 300, "rejected": "3" + "y" * 300},
        {"prompt": "1" * 300, "chosen": "2", "rejected": "3"},
    ]
    dpo.train = write_jsonl(dpo.runner.root / "long.jsonl", [*pairs(6), *long])
    ended = dpo("long", {"max_steps": 2, "context_length": 64})
    assert ended.code == 0
    log = capfd.readouterr().out
    assert "2 of 8 pairs" in log
    assert "1 pairs are left out" in log
    dpo.train = write_jsonl(dpo.runner.root / "long.jsonl", long[1:])
    ended = dpo("longer", {"max_steps": 2, "context_length": 64})
    assert ended.result["reason"] == "dataset_invalid"
    assert "context_length 64" in ended.result["message"]


def test_the_target_of_an_evaluation_ends_the_run(dpo):
    config = {"max_steps": 60, "batch_size": 4, "stop_metric": "eval_accuracy", "stop_value": 0.9}
    ended = dpo("target", config, evaluated=True)
    assert (ended.result["outcome"], ended.result["reason"]) == ("completed", "target_reached")
    assert ended.result["step"] < 60


def test_a_missing_column_is_named(dpo):
    dpo.train = write_jsonl(dpo.runner.root / "bad.jsonl", [{"prompt": "x", "chosen": "y"}])
    ended = dpo("bad", {"max_steps": 1})
    assert ended.result["reason"] == "dataset_invalid"
    assert "rejected" in ended.result["message"]


def test_half_the_pairs_at_once_make_the_same_step(dpo):
    config = {"max_steps": 3, "batch_size": 4}
    whole = dpo("whole", config)
    halved = dpo("halved", config, oom_halvings=1)
    for name in ("loss", "grad_norm"):
        for step, value in whole.series(name).items():
            assert halved.series(name)[step] == pytest.approx(value, rel=2e-3)


@pytest.mark.parametrize("extra", [{}, LORA], ids=["full", "lora"])
def test_killed_in_the_middle_it_goes_on_to_the_same_end(dpo, extra):
    assert_goes_on_after_a_kill(dpo, extra)


@pytest.mark.parametrize("extra", [{}, LORA], ids=["full", "lora"])
def test_it_trains_in_half_precision_against_the_same_reference(dpo, extra):
    ended = dpo("half", {"max_steps": 8, "batch_size": 4, "precision": "bf16", **extra})
    assert ended.code == 0, ended.result
    assert ended.series("loss")[1] == pytest.approx(math.log(2), abs=2e-2)
    assert ended.series("reward_margin")[8] > 0.05
