"""Parameters that must stand together, and those that cannot."""

from collections.abc import Callable
from typing import Any

import pytest

from shared.specs import FieldError, SpecInvalid, job_config, parse_job_spec

Refused = Callable[[object], dict[str, FieldError]]
Bodies = dict[str, dict[str, Any]]

JOB = "0190c0de-0000-7000-8000-000000000001"
API = {"reward_model_type": "api", "reward_model_api_key": "secret"}


def component(**fields: Any) -> dict[str, Any]:
    return {"name": "math", "reward_fn_type": "math_verify", **fields}


@pytest.mark.parametrize(
    ("algorithm", "fields", "field", "code"),
    [
        ("sft", {"lora_rank": 8}, "lora_rank", "needs"),
        ("sft", {"lora_enabled": False, "lora_rank": 4}, "lora_rank", "needs"),
        ("sft", {"lora_from_checkpoint": "continue"}, "lora_from_checkpoint", "needs"),
        ("sft", {"run_mode": "ssh"}, "ssh_host", "needs"),
        ("sft", {"ssh_host": "box1"}, "ssh_host", "needs"),
        ("sft", {"ssh_port": 22}, "ssh_port", "needs"),
        ("sft", {"run_mode": "ssh", "ssh_host": "a", "host": "b"}, "ssh_host", "conflict"),
        (
            "sft",
            {"run_mode": "ssh", "ssh_host": "a", "ssh_password": "p", "ssh_private_key": "k"},
            "ssh_password",
            "conflict",
        ),
        ("sft", {"stop_value": 0.5}, "stop_metric", "needs"),
        ("sft", {"stop_metric": "loss"}, "stop_value", "needs"),
        ("sft", {"stop_metric": "reward", "stop_value": 1.0}, "stop_metric", "not_allowed"),
        (
            "sft",
            {"stop_metric": "eval_accuracy", "stop_value": 0.5, "eval_data_path": "e"},
            "eval_generate",
            "needs",
        ),
        ("sft", {"stop_metric": "eval_loss", "stop_value": 1.0}, "eval_data_path", "needs"),
        ("sft", {"eval_generate": True}, "eval_data_path", "needs"),
        ("sft", {"early_stopping_patience": 3}, "eval_data_path", "needs"),
        ("sft", {"reward_fn_type": "math_verify"}, "reward_fn_type", "needs"),
        ("sft", {"reward_fn_type": "self_play"}, "reward_fn_type", "not_allowed"),
        ("sft", {"reward_fn_answer_key": "x"}, "reward_fn_answer_key", "needs"),
        ("sft", {"num_nodes": 2}, "distribution", "needs"),
        ("sft", {"engine": "verl"}, "engine", "not_allowed"),
        ("ppo", {"distribution": "fsdp", "num_gpus": 2}, "distribution", "not_allowed"),
        ("ppo", {"batch_size": 3, "num_gpus": 2}, "batch_size", "not_allowed"),
        (
            "grpo",
            {"stop_metric": "eval_loss", "stop_value": 1.0, "eval_data_path": "e"},
            "stop_metric",
            "not_allowed",
        ),
        ("sft", {"model_path": "stage:first"}, "model_path", "needs"),
        (
            "reward_model",
            {"eval_generate": True, "eval_data_path": "e"},
            "eval_generate",
            "conflict",
        ),
        ("dpo", {"beta": 0.1, "kl_coef": 0.2}, "kl_coef", "conflict"),
        ("ppo", {"reward_fn_type": None}, "reward_fn_type", "needs"),
        ("grpo", {"reward_fn_type": None}, "reward_fn_type", "needs"),
        ("gspo", {"reward_fn_type": None}, "reward_fn_type", "needs"),
        ("ppo", {"ppo_minibatches": 11}, "ppo_minibatches", "out_of_range"),
        ("ppo", {"rollout_n": 1, "reward_fn_type": "self_play"}, "rollout_n", "out_of_range"),
        ("grpo", {"rollout_n": 1}, "rollout_n", "out_of_range"),
        ("gspo", {"rollout_n": 17}, "rollout_n", "out_of_range"),
        ("grpo", {"reward_provider": "qwen"}, "reward_fn_type", "conflict"),
        (
            "grpo",
            {"reward_fn_type": None, "reward_provider": "qwen", **API},
            "reward_provider",
            "conflict",
        ),
        ("grpo", {"rewards": [component()]}, "reward_fn_type", "conflict"),
        (
            "gspo",
            {"rewards": [{"name": n, **API, "reward_model_api_key": n} for n in ("a", "b")]},
            "rewards.1.reward_model_api_key",
            "conflict",
        ),
        (
            "gspo",
            {
                "rewards": [
                    {"name": "a", **API},
                    {"name": "b", **API, "reward_model_api_base": "https://judge.example/v1"},
                ]
            },
            "rewards.1.reward_model_api_base",
            "conflict",
        ),
        (
            "grpo",
            {"reward_fn_type": None, "reward_model_type": "model"},
            "reward_model_path",
            "needs",
        ),
        ("grpo", {"reward_model_path": "m"}, "reward_model_path", "needs"),
        ("grpo", {"reward_model_api_model": "qwen-plus"}, "reward_model_api_model", "needs"),
        ("gspo", {"rewards": []}, "rewards", "too_short"),
        ("gspo", {"rewards": [component(), component()]}, "rewards", "duplicate"),
        ("gspo", {"rewards": [{"name": "a"}]}, "rewards.0.reward_fn_type", "needs"),
        ("gspo", {"rewards": [component(weigth=2)]}, "rewards.0.weigth", "unknown_field"),
        ("gspo", {"rewards": [component(rewards=[])]}, "rewards.0.rewards", "unknown_field"),
        ("gspo", {"rewards": [component(weight=float("nan"))]}, "rewards.0.weight", "not_finite"),
        (
            "gspo",
            {"rewards": [{"name": "a", "reward_model_type": "model"}]},
            "rewards.0.reward_model_path",
            "needs",
        ),
        (
            "gspo",
            {"rewards": [component(), component(name="b", reward_provider="q")]},
            "rewards.1.reward_fn_type",
            "conflict",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    minimal: Bodies,
    refused: Refused,
    algorithm: str,
    fields: dict[str, Any],
    field: str,
    code: str,
) -> None:
    errors = refused({**minimal[algorithm], **fields})
    assert errors[field].code == code, errors


@pytest.mark.parametrize(
    ("algorithm", "fields"),
    [
        ("sft", {"lora_enabled": True, "lora_rank": 4, "lora_target_modules": ["q_proj"]}),
        ("sft", {"lora_from_checkpoint": "merge", "model_path": f"job:{JOB}"}),
        ("sft", {"lora_enabled": False, "lora_rank": 8, "run_mode": "local", "ssh_port": 22}),
        ("sft", {"run_mode": "ssh", "ssh_host": "10.0.0.7", "ssh_password": "p", "ssh_port": 2222}),
        ("sft", {"run_mode": "ssh", "ssh_host": "fe80::1"}),
        ("sft", {"run_mode": "ssh", "host": "box1"}),
        ("sft", {"stop_metric": "loss", "stop_value": 1.5}),
        (
            "sft",
            {
                "eval_generate": True,
                "eval_data_path": "e",
                "stop_metric": "eval_accuracy",
                "stop_value": 0.25,
                "reward_fn_type": "math_verify",
                "reward_fn_extract_answer": "last_number",
            },
        ),
        ("sft", {"num_nodes": 2, "distribution": "fsdp"}),
        ("ppo", {"num_gpus": 2, "distribution": "fsdp", "engine": "verl"}),
        ("dpo", {"beta": 0.2, "kl_coef": 0.2}),
        ("dpo", {"stop_metric": "eval_accuracy", "stop_value": 0.9, "eval_data_path": "e"}),
        ("ppo", {"rollout_n": 1}),
        ("ppo", {"engine": "verl"}),
        ("ppo", {"reward_fn_type": None, **API}),
        ("ppo", {"reward_fn_type": None, "reward_model_type": "model", "reward_model_path": "m"}),
        ("grpo", {"reward_fn_type": None, "reward_provider": "qwen"}),
        ("grpo", {"reward_fn_type": "self_play", "reward_provider": "qwen"}),
        ("gspo", {"reward_provider": "qwen"}),
        ("gspo", {"reward_fn_type": None, **API}),
        ("gspo", {"rewards": [component(), component(name="duel", reward_fn_type="self_play")]}),
        ("gspo", {"rewards": [component(weight=-1, required=True)], "max_reward_cost": 5}),
    ],
)
def test_what_goes_together_is_taken(
    minimal: Bodies, algorithm: str, fields: dict[str, Any]
) -> None:
    assert parse_job_spec({**minimal[algorithm], **fields}).algorithm == algorithm


@pytest.mark.parametrize("fields", [{"kl_coef": 0.3}, {"beta": 0.3}, {"beta": 0.3, "kl_coef": 0.3}])
def test_kl_coef_is_another_name_for_beta(minimal: Bodies, fields: dict[str, float]) -> None:
    config = job_config(parse_job_spec({**minimal["dpo"], **fields}))
    assert (config["beta"], config["kl_coef"]) == (0.3, None)


def test_components_replace_the_self_play_default(minimal: Bodies) -> None:
    spec = parse_job_spec({**minimal["gspo"], "rewards": [component()]})
    config = job_config(spec)
    assert config["reward_fn_type"] is None
    assert parse_job_spec(config) == spec


def test_a_rule_is_silent_where_its_own_field_is_wrong_already(
    minimal: Bodies, refused: Refused
) -> None:
    errors = refused({**minimal["sft"], "stop_metric": "loss", "stop_value": "low"})
    assert {field: error.code for field, error in errors.items()} == {"stop_value": "wrong_type"}


def test_a_stage_may_be_named_inside_a_pipeline(minimal: Bodies) -> None:
    body = {**minimal["dpo"], "model_path": "stage:sft@best"}
    assert parse_job_spec(body, in_pipeline=True).name == "dpo sft"
    with pytest.raises(SpecInvalid):
        parse_job_spec(body)
