"""The overrides that verl gets for a job; names checked against verl 0.7.0 when they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.verl_command import VerlFiles, plan, text
from shared.runs import RunSpec

GRPO = """
algorithm.adv_estimator=grpo
algorithm.use_kl_in_reward=false
data.train_files=/w/verl/train.parquet
data.val_files=/w/verl/train.parquet
data.val_max_samples=100
data.prompt_key=prompt
data.reward_fn_key=data_source
data.train_batch_size=8
data.max_prompt_length=768
data.max_response_length=256
data.filter_overlong_prompts=true
data.truncation=error
data.shuffle=true
data.seed=7
actor_rollout_ref.model.path=Qwen/Qwen2.5-0.5B
actor_rollout_ref.model.enable_gradient_checkpointing=true
actor_rollout_ref.actor.strategy=fsdp
actor_rollout_ref.actor.optim.lr=1e-06
actor_rollout_ref.actor.optim.weight_decay=0.0
actor_rollout_ref.actor.optim.betas=[0.9,0.999]
actor_rollout_ref.actor.optim.lr_warmup_steps=5
actor_rollout_ref.actor.optim.lr_scheduler_type=constant
actor_rollout_ref.actor.grad_clip=1.0
actor_rollout_ref.actor.ppo_mini_batch_size=8
actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=10
actor_rollout_ref.actor.ppo_epochs=1
actor_rollout_ref.actor.clip_ratio=0.2
actor_rollout_ref.actor.clip_ratio_low=0.2
actor_rollout_ref.actor.clip_ratio_high=0.2
actor_rollout_ref.actor.entropy_coeff=0.01
actor_rollout_ref.actor.calculate_entropy=true
actor_rollout_ref.actor.use_kl_loss=true
actor_rollout_ref.actor.kl_loss_coef=0.001
actor_rollout_ref.actor.kl_loss_type=low_var_kl
actor_rollout_ref.actor.data_loader_seed=7
actor_rollout_ref.actor.fsdp_config.seed=7
actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]
actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=10
actor_rollout_ref.rollout.name=vllm
actor_rollout_ref.rollout.n=5
actor_rollout_ref.rollout.temperature=0.9
actor_rollout_ref.rollout.top_p=1.0
actor_rollout_ref.rollout.tensor_model_parallel_size=1
actor_rollout_ref.rollout.gpu_memory_utilization=0.4
actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=10
reward_model.enable=false
custom_reward_function.path=/r/verl_reward.py
custom_reward_function.name=compute_score
++custom_reward_function.reward_kwargs.socket_path=/tmp/t/judge
trainer.project_name=trainyard
trainer.experiment_name=job1
trainer.logger=[console]
trainer.nnodes=1
trainer.n_gpus_per_node=4
trainer.save_freq=20
trainer.test_freq=-1
trainer.val_before_train=false
trainer.total_training_steps=25
trainer.total_epochs=3
trainer.default_local_dir=/c/.tmp-verl
trainer.resume_mode=disable
"""

PPO_CRITIC = """
critic.model.path='/models/my model'
critic.model.enable_gradient_checkpointing=true
critic.model.lora_rank=16
critic.model.lora_alpha=32
critic.model.target_modules=[q_proj,v_proj]
critic.optim.lr=1e-05
critic.optim.weight_decay=0.0
critic.optim.betas=[0.9,0.999]
critic.optim.lr_warmup_steps=0
critic.optim.lr_scheduler_type=cosine
critic.grad_clip=1.0
critic.ppo_micro_batch_size_per_gpu=5
critic.cliprange_value=0.1
critic.data_loader_seed=42
"""


def spec(algorithm: str, config: dict[str, Any], gpus: int = 1, **fields: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "job": "job1", "attempt": 1, "algorithm": algorithm, "config": config,
            "model_path": "Qwen/Qwen2.5-0.5B", "train_data_path": "/d", "checkpoint_dir": "/c", "work_dir": "/w",
            "attempt_dir": "/w/attempts/1", "device": "cuda", "gpus": [{"index": n} for n in range(gpus)],
        }
        | fields
    )  # fmt: skip


def files(rows: int = 64, **fields: Any) -> VerlFiles:
    return VerlFiles(
        **{
            "train": Path("/w/verl/train.parquet"), "rows": rows, "held_out": None,
            "checkpoints": Path("/c/.tmp-verl"), "reward": Path("/r/verl_reward.py"), "judge": Path("/tmp/t/judge"),
        }
        | fields
    )  # fmt: skip


def values(overrides: tuple[str, ...]) -> dict[str, str]:
    return dict(o.split("=", 1) for o in overrides)


def test_grpo_on_four_gpus() -> None:
    config = {
        "batch_size": 8, "gradient_accumulation_steps": 1, "rollout_n": 5, "temperature": 0.9, "entropy_coef": 0.01,
        "kl_coef": 0.001, "learning_rate": 1e-6, "context_length": 1024, "max_completion_length": 256, "seed": 7,
        "warmup_steps": 5, "num_epochs": 3, "max_steps": 25, "lr_scheduler_type": "linear",
    }  # fmt: skip
    rows = plan(spec("grpo", config, gpus=4), files(rows=80))
    assert list(rows.overrides) == GRPO.strip().split("\n")
    assert rows.steps == 25
    assert "lr_scheduler_type linear becomes constant" in rows.notes[0][0]


def test_ppo_with_lora_resumed_and_evaluated() -> None:
    config = {
        "batch_size": 4, "ppo_minibatches": 2, "ppo_epochs": 3, "clip_ratio": 0.1, "kl_coef": 0.01, "gae_lambda": 0.9,
        "lora_enabled": True, "lora_rank": 16, "lora_alpha": 32, "lora_target_modules": ["q_proj", "v_proj"],
        "lr_scheduler_type": "cosine", "eval_steps": 10, "ref_model_path": "job:x", "rollout_n": 5, "precision": "fp16",
    }  # fmt: skip
    given = spec(
        "ppo",
        config,
        2,
        model_path="/models/my model",
        model_paths={"ref_model_path": "/models/ref"},
    )
    done = plan(
        given,
        files(
            held_out=Path("/w/verl/eval.parquet"),
            resume_from=Path("/c/checkpoint-20/global_step_20"),
        ),
    )
    assert [o for o in done.overrides if o.startswith("critic.")] == PPO_CRITIC.strip().split("\n")
    got = values(done.overrides)
    expected = {
        "algorithm.adv_estimator": "gae",
        "algorithm.lam": "0.9",
        "algorithm.use_kl_in_reward": "true",
        "algorithm.kl_ctrl.kl_coef": "0.01",
        "actor_rollout_ref.actor.use_kl_loss": "false",
        "actor_rollout_ref.actor.ppo_mini_batch_size": "2",
        "actor_rollout_ref.actor.ppo_epochs": "3",
        "actor_rollout_ref.actor.fsdp_config.dtype": "float16",
        "actor_rollout_ref.model.lora_rank": "16",
        "actor_rollout_ref.rollout.load_format": "safetensors",
        "++actor_rollout_ref.ref.model.path": "/models/ref",
        "data.val_files": "/w/verl/eval.parquet",
        "trainer.test_freq": "10",
        "trainer.resume_mode": "resume_path",
        "trainer.resume_from_path": "/c/checkpoint-20/global_step_20",
        "trainer.total_training_steps": "16",  # 64 rows in steps of 4, once
        "trainer.total_epochs": "1",
    }
    assert {name: got[name] for name in expected} == expected
    assert "vf_coef has no effect" in done.notes[-1][0]


def test_after_memory_ran_out_a_pass_holds_less_and_a_step_as_much() -> None:
    config = {"batch_size": 4, "rollout_n": 4, "optim": "sgd"}
    actor = "actor_rollout_ref.actor"
    for halvings, micro in ((0, "16"), (1, "8"), (3, "2"), (9, "1")):
        done = plan(spec("grpo", config, oom_halvings=halvings), files())
        got = values(done.overrides)
        assert got[f"{actor}.ppo_micro_batch_size_per_gpu"] == micro
        assert got["actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu"] == micro
        assert got[f"{actor}.ppo_mini_batch_size"] == "4"
        assert any("optim sgd has no effect" in en for en, _ in done.notes)


@pytest.mark.parametrize(
    ("algorithm", "config", "word"),
    [
        ("sft", {}, "not sft"),
        ("grpo", {"reward_fn_type": "self_play"}, "self_play"),
        ("grpo", {"rewards": [{"reward_fn_type": "self_play"}]}, "self_play"),
        ("ppo", {"batch_size": 5, "ppo_minibatches": 2}, "ppo_minibatches"),
        ("grpo", {"batch_size": 3}, "cannot be shared by 2 devices"),
        ("grpo", {"batch_size": 100}, "dataset has 64 rows"),
    ],
)
def test_what_verl_cannot_do_is_refused(algorithm: str, config: dict[str, Any], word: str) -> None:
    with pytest.raises(TrainingFailure, match=word) as refused:
        plan(spec(algorithm, config, gpus=2), files())
    assert refused.value.message_zh


@pytest.mark.parametrize(
    ("value", "rendered"),
    [
        (None, "null"), (True, "true"), (3, "3"), (1e-6, "1e-06"), ("word", "word"), ("null", "'null'"),
        ("1e3", "'1e3'"), ("a b", "'a b'"), ("it's", "'it\\'s'"), ("a,b=c[d]", "'a,b=c[d]'"), ("", "''"),
        (("a", "b c"), "[a,'b c']"), ("${env:HOME}", "'${env:HOME}'"),
    ],
)  # fmt: skip
def test_values_in_the_grammar_of_hydra(value: Any, rendered: str) -> None:
    assert text(value) == rendered
