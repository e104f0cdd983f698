"""A reward model from spec to served scores: what it reports, what it starts from, how it resumes and who can load it."""

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

LORA = {"lora_enabled": True, "learning_rate": 2e-2}
GOOD, BAD = ("30+3=", "\\boxed{33}"), ("30+3=", "27 perhaps")


@pytest.fixture
def rewards(runner):
    return PairRunner(runner, "reward_model")


def served(folder):
    """Return the scores of a good and a bad answer as the reward service's model process gives them."""
    from services.reward.model_process import Scorer

    good, bad = Scorer(str(folder)).scores([GOOD, BAD], 512)
    return good, bad


@pytest.mark.parametrize("extra", [{}, LORA], ids=["full", "lora"])
def test_a_run_learns_the_pairs_and_its_checkpoint_is_served(rewards, extra):
    config = {"max_steps": 20, "batch_size": 4, "learning_rate": 2e-3, **extra}
    ended = rewards("rm", config, evaluated=True)
    assert ended.code == 0, ended.result
    assert set(ended.result["final_metrics"]) >= {
        "loss",
        "accuracy",
        "reward_margin",
        "learning_rate",
        "grad_norm",
        "epoch",
        "tokens_per_second",
        "eval_loss",
        "eval_accuracy",
        "eval_reward_margin",
    }
    assert ended.series("eval_accuracy")[20] == 1.0
    assert ended.series("eval_reward_margin")[20] > ended.series("eval_reward_margin")[5]
    assert {c["kind"] for c in ended.of("checkpoint")} == {"lora" if extra else "full"}
    last = ended.checkpoint_dir / "checkpoint-20"
    assert checkpoint_store.verify(last) is None
    good, bad = served(last)
    assert good > bad
    assert good == pytest.approx(
        loaded_score(last, rewards.runner.tiny, lora=bool(extra)), abs=1e-5
    )


def loaded_score(folder, tiny, *, lora):
    """Return what plain transformers and peft give for the good answer, in the text of the training."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = tiny if lora else folder
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    if lora:
        model = PeftModel.from_pretrained(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.config.pad_token_id = tokenizer.pad_token_id
    turns = [{"role": "user", "content": GOOD[0]}, {"role": "assistant", "content": GOOD[1]}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return float(model.eval()(input_ids=ids).logits[0, 0])


def test_training_and_serving_read_the_same_tokens(runner):
    from transformers import AutoTokenizer

    from services.gpu_agent.trainers.examples import Example
    from services.gpu_agent.trainers.pairs import Pair, PairEncoder
    from services.reward.model_process import Scorer

    for template in (True, False):
        tokenizer = AutoTokenizer.from_pretrained(runner.tiny)
        if not template:
            tokenizer.chat_template = None
        scorer = Scorer.__new__(Scorer)
        scorer._tokenizer = tokenizer
        good, bad = (Example(prompt=p, response=r) for p, r in (GOOD, BAD))
        encoded = PairEncoder(tokenizer, 512, cut="start").encode([Pair(good, bad)], "x").dataset[0]
        assert encoded["chosen_ids"] == scorer._encode(GOOD, 512)
        assert encoded["rejected_ids"] == scorer._encode(BAD, 512)


@pytest.mark.parametrize("how", ["full", "merge", "continue"])
def test_it_starts_from_a_fine_tuned_checkpoint(rewards, how):
    start = rewards.sft_lora()
    config = {"max_steps": 12, "batch_size": 4, "learning_rate": 5e-3}
    if how != "full":
        config |= {"lora_enabled": True, "learning_rate": 2e-2, "lora_from_checkpoint": how}
    ended = rewards(how, config, model_path=str(start), evaluated=True)
    assert ended.code == 0, ended.result
    assert ended.series("loss")[1] == pytest.approx(math.log(2), abs=0.2)
    assert ended.series("eval_accuracy")[12] == 1.0
    good, bad = served(ended.checkpoint_dir / "checkpoint-12")
    assert good > bad


def test_a_reward_model_is_trained_further(rewards):
    config = {"max_steps": 10, "batch_size": 4, "learning_rate": 2e-3}
    first = rewards("first", config, evaluated=True)
    start = str(first.checkpoint_dir / "checkpoint-10")
    again = rewards("again", config | {"max_steps": 1}, evaluated=True, model_path=start)
    assert again.code == 0, again.result
    # it begins with the score that it had, not with a random one
    assert again.series("reward_margin")[1] > first.series("reward_margin")[1] + 0.1


@pytest.mark.parametrize("extra", [{}, LORA | {"lora_dropout": 0.2}], ids=["full", "lora"])
def test_a_resumed_run_gives_the_very_same_figures(rewards, extra):
    assert_resumes_exactly(rewards, extra)


@pytest.mark.parametrize("extra", [{}, LORA], ids=["full", "lora"])
def test_killed_in_the_middle_it_goes_on_to_the_same_end(rewards, extra):
    assert_goes_on_after_a_kill(rewards, extra)


def test_answers_are_never_cut_and_what_is_too_long_is_counted(rewards, capfd):
    long = [
        {"prompt": "1" * 300, "chosen": "2", "rejected": "3"},
        {"prompt": "1+1=", "chosen": "2" + "x" * 300, "rejected": "3"},
    ]
    rewards.train = write_jsonl(rewards.runner.root / "long.jsonl", [*pairs(6), *long])
    ended = rewards("long", {"max_steps": 2, "context_length": 64})
    assert ended.code == 0, ended.result
    log = capfd.readouterr().out
    assert "2 of 8 pairs" in log
    assert "1 pairs are left out" in log


@pytest.mark.parametrize("extra", [{}, LORA], ids=["full", "lora"])
def test_it_trains_in_half_precision(rewards, extra):
    config = {"max_steps": 12, "batch_size": 4, "precision": "bf16", "learning_rate": 3e-3, **extra}
    ended = rewards("half", config, evaluated=True)
    assert ended.code == 0, ended.result
    assert ended.series("eval_accuracy")[12] == 1.0
    good, bad = served(ended.checkpoint_dir / "checkpoint-12")
    assert good > bad
