"""What a trainer writes: events, metrics that are not finite, secrets kept out."""

import json
import logging
import math
from typing import Any

import pytest

from services.gpu_agent.trainers.context import (
    EventWriter,
    Sample,
    StopFlag,
    TrainContext,
    remove_secrets,
)
from services.gpu_agent.trainers.entry import _process_setup
from services.gpu_agent.trainers.settings import (
    PpoSettings,
    PreferenceSettings,
    RolloutSettings,
    SftSettings,
)
from shared.runs import RunSpec
from shared.specs.dpo import DpoSpec
from shared.specs.grpo import GrpoSpec
from shared.specs.gspo import GspoSpec
from shared.specs.ppo import PpoSpec
from shared.specs.sft import SftSpec


def context_in(folder, secrets=()):
    spec = RunSpec(
        job="j",
        attempt=1,
        algorithm="sft",
        model_path="m",
        train_data_path="d",
        checkpoint_dir=folder,
        work_dir=folder,
        attempt_dir=folder,
    )
    return TrainContext(spec, EventWriter(folder / "events.jsonl"), StopFlag(folder), secrets)


def lines(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_values_that_are_not_finite_stand_by_name(tmp_path):
    context = context_in(tmp_path)
    context.metric(
        3,
        0.5,
        {"loss": math.nan, "grad_norm": math.inf, "reward": -math.inf, "learning_rate": 1e-5},
    )
    (record,) = lines(tmp_path)
    assert record["metrics"] == {
        "loss": None,
        "grad_norm": None,
        "reward": None,
        "learning_rate": 1e-5,
    }
    assert record["nonfinite"] == {"loss": "nan", "grad_norm": "inf", "reward": "-inf"}
    assert math.isnan(context.latest["loss"])


def test_finite_metrics_carry_no_nonfinite(tmp_path):
    context = context_in(tmp_path)
    context.metric(3, 0.5, {"loss": 1.5})
    assert "nonfinite" not in lines(tmp_path)[0]


def test_an_old_evaluation_is_not_of_a_later_step(tmp_path):
    context = context_in(tmp_path)
    context.metric(5, 0.1, {"eval_loss": 2.0})
    context.metric(5, 0.1, {"loss": 1.0})
    assert context.latest_at(5) == {"eval_loss": 2.0, "loss": 1.0}
    assert context.latest_at(6) == {"loss": 1.0}


def test_a_second_writer_appends_whole_lines(tmp_path):
    first, second = context_in(tmp_path), context_in(tmp_path)
    first.progress(1, 10, 0.1, None)
    second.sample(2, Sample("问", "答" * 3000, reward=None))
    first.phase("training")
    assert [record["type"] for record in lines(tmp_path)] == ["progress", "sample", "phase"]
    assert lines(tmp_path)[1]["reward"] is None


def test_secrets_are_taken_out_of_any_text():
    assert remove_secrets("key=abc123secret!", ["abc123secret"]) == "key=***!"
    assert remove_secrets("a token hf_abcdefghijklmnop", []) == "a token ***"
    assert remove_secrets("word", ["or"]) == "word"


def test_the_stop_mode_comes_from_the_agent_s_file(tmp_path):
    flag = StopFlag(tmp_path)
    assert flag.cause() is None
    for text, cause in (
        ('{"mode": "pause"}', "pause"),
        ('{"mode": "?"}', None),
        ("{", None),
        ("[]", None),
    ):
        (tmp_path / "stop.json").write_text(text)
        assert flag.cause() == cause


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (SftSpec, SftSettings),
        (DpoSpec, PreferenceSettings),
        (GrpoSpec, RolloutSettings),
        (GspoSpec, RolloutSettings),
        (PpoSpec, PpoSettings),
    ],
)
def test_defaults_are_those_of_the_public_spec(spec: Any, settings: Any):
    fields = spec.model_fields
    ours = settings()
    for name in settings.__dataclass_fields__:
        default = fields[name].default
        if name in ("lora_target_modules", "lora_from_checkpoint"):
            assert default in ("all-linear", None)  # what our None and "merge" mean
        else:
            assert getattr(ours, name) == default, name


def test_lines_of_libraries_are_without_the_jobs_secrets(capfd):
    with _process_setup(("plainvalue",)):
        logging.getLogger("httpx").warning("GET https://x?token=%s of hf_12345678abc", "plainvalue")
    assert capfd.readouterr().out == "[WARNING] GET https://x?token=*** of ***\n"
