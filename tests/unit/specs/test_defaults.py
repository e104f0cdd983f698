"""Every parameter of the product's table exists under its name, in the right algorithms, with its default."""

from typing import Any

import pytest

from shared.specs import EVERY_ALGORITHM, METRICS, SPECS, job_config, metric_goal, parse_job_spec

EVERYWHERE: dict[str, Any] = {
    "description": None,
    "tags": [],
    "eval_data_path": None,
    "num_epochs": 1,
    "max_steps": None,
    "learning_rate": 1e-5,
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "context_length": 512,
    "save_steps": 20,
    "save_total_limit": 3,
    "eval_steps": 20,
    "logging_steps": 1,
    "warmup_steps": 0,
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch_fused",
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "seed": 42,
    "precision": "auto",
    "gradient_checkpointing": True,
    "engine": "trl",
    "eval_generate": False,
    "eval_samples": 100,
    "stop_metric": None,
    "stop_value": None,
    "early_stopping_patience": None,
    "time_limit_minutes": None,
    "num_gpus": 1,
    "gpu_type": None,
    "num_nodes": 1,
    "distribution": None,
    "priority": 50,
    "max_retries": 1,
    "disconnect_policy": "keep",
    "depends_on": [],
    "run_mode": "local",
    "host": None,
    "ssh_host": None,
    "ssh_port": 22,
    "ssh_username": None,
    "ssh_password": None,
    "ssh_private_key": None,
    "ssh_work_dir": "~/verl_jobs",
    "secrets": {},
    "lora_enabled": False,
    "lora_rank": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "lora_target_modules": "all-linear",
    "lora_from_checkpoint": None,
}
ROLLOUT: dict[str, Any] = {
    "kl_coef": 0.001,
    "clip_ratio": 0.2,
    "entropy_coef": 0.0,
    "rollout_n": 5,
    "temperature": 1.0,
    "top_p": 1.0,
    "max_completion_length": 512,
    "ref_model_path": None,
    "min_valid_reward_rate": 0.8,
    "reward_provider": None,
    "reward_model_type": None,
    "reward_model_api_base": "https://dashscope.aliyuncs.com/compatible-mode/v1",
    "reward_model_api_key": None,
    "reward_model_api_model": "qwen-plus",
    "reward_model_path": None,
    "rewards": None,
    "max_reward_cost": None,
}
RULE_DETAILS: dict[str, Any] = {
    "reward_fn_extract_answer": "boxed",
    "reward_fn_compare_method": "numeric",
    "reward_fn_answer_key": "solution",
    "reward_fn_config": {},
}
OWN: dict[str, dict[str, Any]] = {
    "sft": {"packing": False, "reward_fn_type": None, **RULE_DETAILS},
    "dpo": {
        "beta": 0.1,
        "kl_coef": None,
        "ref_model_path": None,
        "reward_fn_type": None,
        **RULE_DETAILS,
    },
    "ppo": {
        **ROLLOUT,
        **RULE_DETAILS,
        "reward_fn_type": "math_verify",
        "vf_coef": 0.1,
        "gae_lambda": 0.95,
        "ppo_epochs": 4,
        "ppo_minibatches": 1,
    },
    "grpo": {**ROLLOUT, **RULE_DETAILS, "reward_fn_type": "math_verify"},
    "gspo": {**ROLLOUT, **RULE_DETAILS, "reward_fn_type": "self_play"},
    "reward_model": {},
}


@pytest.mark.parametrize("algorithm", EVERY_ALGORITHM)
def test_the_smallest_body_gets_every_default(
    algorithm: str, minimal: dict[str, dict[str, Any]]
) -> None:
    body = minimal[algorithm]
    expected = {
        "algorithm": algorithm,
        "name": f"{algorithm} Qwen2.5-0.5B",
        "model_path": body["model_path"],
        "train_data_path": body["train_data_path"],
        **EVERYWHERE,
        **OWN[algorithm],
    }
    assert job_config(parse_job_spec(body)) == expected


def test_the_guides_own_body_works_as_it_stands() -> None:
    body: dict[str, Any] = {
        "name": "my first run",
        "algorithm": "sft",
        "model_path": "models/tiny",
        "train_data_path": "datasets/sales_sft.jsonl",
        "num_gpus": 1,
        "learning_rate": 1e-5,
        "batch_size": 2,
        "num_epochs": 1,
    }
    config = job_config(parse_job_spec(body))
    assert {name: config[name] for name in body} == body


@pytest.mark.parametrize("algorithm", EVERY_ALGORITHM)
def test_a_spec_has_the_attributes_that_services_read(
    algorithm: str, minimal: dict[str, dict[str, Any]]
) -> None:
    spec = parse_job_spec({**minimal[algorithm], "host": "box1", "priority": 90, "tags": ["a"]})
    assert (spec.algorithm, spec.host, spec.priority, spec.tags) == (algorithm, "box1", 90, ("a",))
    assert (spec.num_gpus, spec.gpu_type, spec.max_retries) == (1, None, 1)
    assert (spec.disconnect_policy, spec.depends_on, spec.time_limit_minutes) == ("keep", (), None)


def test_metrics_belong_to_the_same_algorithms_as_specs() -> None:
    assert tuple(METRICS) == EVERY_ALGORITHM == tuple(SPECS)
    assert METRICS["gspo"] == (*METRICS["grpo"], "win_rate")


@pytest.mark.parametrize(
    ("metric", "goal"),
    [
        ("loss", "min"),
        ("eval_loss", "min"),
        ("policy_loss", "min"),
        ("kl_divergence", "min"),
        ("eval_accuracy", "max"),
        ("reward", "max"),
        ("reward_margin", "max"),
        ("win_rate", "max"),
    ],
)
def test_each_metric_has_a_better_direction(metric: str, goal: str) -> None:
    assert metric_goal(metric) == goal


def test_whole_numbers_are_taken_for_decimal_ones_and_minus_one_for_no_limit(
    minimal: dict[str, dict[str, Any]],
) -> None:
    spec = parse_job_spec({**minimal["sft"], "num_epochs": 3, "weight_decay": 0, "max_steps": -1})
    assert (spec.num_epochs, type(spec.num_epochs), spec.max_steps) == (3.0, float, None)
