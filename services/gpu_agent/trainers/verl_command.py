"""The command line of verl for a job with `engine: "verl"`: GRPO or PPO, from the same parameters as without it. Pure.

Names and meanings follow verl 0.7.0 (volcengine/verl, tag v0.7.0, commit f9c855f7): verl/trainer/config/
`_generated_ppo_trainer.yaml`, docs/advance/ppo_lora.rst, verl/workers/fsdp_workers.py for the reference's own path.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.rollouts import share_context
from services.gpu_agent.trainers.settings import PpoSettings, RolloutSettings, parse
from shared.jobs.reasons import Reason
from shared.preflight.batch import BatchPlan, arrange, total_steps
from shared.preflight.finding import Finding
from shared.runs import RunSpec

VERSION: Final = "0.7.0"
MODULE: Final = "verl.trainer.main_ppo"
Value = str | int | float | bool | None | tuple[str | float, ...]

_SCHEDULES: Final = {
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
_GPU_SHARE: Final = 0.4
"""Part of the GPU's memory for vLLM; actor, optimizer and reference live on the same GPUs."""


@dataclass(frozen=True, slots=True)
class VerlFiles:
    """Where verl reads and writes."""

    train: Path
    """Parquet, as `verl_rows` makes it."""
    rows: int
    held_out: Path | None
    checkpoints: Path
    """Folder that gets a `global_step_<n>` for each save."""
    reward: Path
    """Python file with `compute_score`."""
    judge: Path
    """Socket at which `compute_score` asks."""
    resume_from: Path | None = None
    """A `global_step_<n>`."""


@dataclass(frozen=True, slots=True)
class VerlPlan:
    """What to run; `notes` are (en, zh) about parameters that verl takes differently."""

    overrides: tuple[str, ...]
    steps: int
    notes: tuple[tuple[str, str], ...] = ()


def plan(spec: RunSpec, files: VerlFiles) -> VerlPlan:
    """Return the overrides for `python -m verl.trainer.main_ppo`. Raises TrainingFailure (`config_invalid`)."""
    if spec.algorithm not in ("grpo", "ppo"):
        raise _invalid(
            f"engine verl runs ppo and grpo, not {spec.algorithm}. Set engine to trl.",
            f"verl 引擎只支持 ppo 和 grpo，不支持 {spec.algorithm}。请将 engine 设为 trl。",
        )
    chosen = parse(spec.config, PpoSettings if spec.algorithm == "ppo" else RolloutSettings)
    if any(kind == "self_play" for kind in _reward_kinds(spec)):
        raise _invalid(
            "engine verl scores every completion by itself, so self_play has nothing to compare. Set engine to trl.",
            "verl 引擎逐条打分，self_play 无法在候选之间比较。请将 engine 设为 trl。",
        )
    steps = _steps(spec, chosen, files.rows)
    pairs = [
        *_algorithm(spec, chosen),
        *_data(chosen, files),
        *_policy(spec, chosen),
        *_rollout(spec, chosen),
        *(_critic(spec, chosen) if isinstance(chosen, PpoSettings) else ()),
        *_reward(files),
        *_trainer(spec, chosen, files, steps),
    ]
    return VerlPlan(tuple(f"{k}={text(v)}" for k, v in pairs), steps, tuple(_notes(chosen)))


def text(value: Value) -> str:
    """Return a value in Hydra's grammar of overrides; a string is quoted where it is more than a plain word."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ",".join(text(item) for item in value) + "]"
    if isinstance(value, int | float):
        return repr(value)
    plain = value and all(c.isalnum() or c in "/._-" for c in value) and not _reads_as_other(value)
    if plain:
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _reads_as_other(value: str) -> bool:
    if value.lower() in ("null", "true", "false", "nan", "inf"):
        return True
    try:
        float(value.replace("_", ""))
    except ValueError:
        return False
    return True


def _world(spec: RunSpec) -> int:
    return max(1, len(spec.gpus))


def _minibatches(chosen: RolloutSettings) -> int:
    return chosen.ppo_minibatches if isinstance(chosen, PpoSettings) else 1


def _mini(chosen: RolloutSettings) -> int:
    """Prompts of one optimizer step; verl counts them before they are repeated `rollout.n` times."""
    wanted = _minibatches(chosen)
    if chosen.batch_size % wanted:
        raise _invalid(
            f"batch_size {chosen.batch_size} cannot be cut into {wanted} ppo_minibatches. Change one of them.",
            f"batch_size {chosen.batch_size} 无法平均分成 {wanted} 个 ppo_minibatches，请修改其中之一。",
        )
    return chosen.batch_size // wanted


def _batch(spec: RunSpec, chosen: RolloutSettings) -> BatchPlan:
    def cut(most: int | None) -> BatchPlan | Finding:
        return arrange(
            "grpo" if chosen.rollout_n > 1 else "ppo",
            _mini(chosen),
            chosen.gradient_accumulation_steps,
            rollout_n=chosen.rollout_n,
            world_size=_world(spec),
            max_micro=most,
        )

    found = cut(None)
    if isinstance(found, BatchPlan) and spec.oom_halvings:
        found = cut(max(1, found.per_device >> spec.oom_halvings))
    if isinstance(found, Finding):
        raise _invalid(found.message_en, found.message_zh)
    return found


def _steps(spec: RunSpec, chosen: RolloutSettings, rows: int) -> int:
    whole = BatchPlan(1, 1, chosen.batch_size, chosen.batch_size, 1)
    found = total_steps(
        whole, spec.algorithm, rows, chosen.num_epochs, chosen.max_steps, _world(spec)
    )
    if isinstance(found, Finding):
        raise _invalid(found.message_en, found.message_zh)
    return found


def _algorithm(spec: RunSpec, chosen: RolloutSettings) -> Iterator[tuple[str, Value]]:
    if isinstance(chosen, PpoSettings):
        yield "algorithm.adv_estimator", "gae"
        yield "algorithm.gamma", 1.0
        yield "algorithm.lam", chosen.gae_lambda
        yield "algorithm.use_kl_in_reward", chosen.kl_coef > 0
        yield "algorithm.kl_ctrl.kl_coef", chosen.kl_coef
    else:
        yield "algorithm.adv_estimator", "grpo"
        yield "algorithm.use_kl_in_reward", False


def _data(chosen: RolloutSettings, files: VerlFiles) -> Iterator[tuple[str, Value]]:
    lengths = share_context((), chosen.context_length, chosen.max_completion_length)
    yield "data.train_files", str(files.train)
    yield "data.val_files", str(files.held_out or files.train)
    yield "data.val_max_samples", chosen.eval_samples
    yield "data.prompt_key", "prompt"
    yield "data.reward_fn_key", "data_source"
    yield "data.train_batch_size", chosen.batch_size
    yield "data.max_prompt_length", lengths.prompt
    yield "data.max_response_length", lengths.completion
    yield "data.filter_overlong_prompts", True
    yield "data.truncation", "error"
    yield "data.shuffle", True
    yield "data.seed", chosen.seed


def _policy(spec: RunSpec, chosen: RolloutSettings) -> Iterator[tuple[str, Value]]:
    model, actor = "actor_rollout_ref.model", "actor_rollout_ref.actor"
    micro = _batch(spec, chosen).per_device
    yield f"{model}.path", spec.model_path
    yield f"{model}.enable_gradient_checkpointing", chosen.gradient_checkpointing
    if chosen.lora_enabled:
        yield f"{model}.lora_rank", chosen.lora_rank
        yield f"{model}.lora_alpha", chosen.lora_alpha
        yield f"{model}.target_modules", chosen.lora_target_modules or "all-linear"
    yield f"{actor}.strategy", "fsdp"
    yield from _optimizer(f"{actor}.optim", chosen)
    yield f"{actor}.grad_clip", chosen.max_grad_norm
    yield f"{actor}.ppo_mini_batch_size", _mini(chosen)
    yield f"{actor}.ppo_micro_batch_size_per_gpu", micro
    yield f"{actor}.ppo_epochs", chosen.ppo_epochs if isinstance(chosen, PpoSettings) else 1
    yield f"{actor}.clip_ratio", chosen.clip_ratio
    yield f"{actor}.clip_ratio_low", chosen.clip_ratio
    yield f"{actor}.clip_ratio_high", chosen.clip_ratio
    yield f"{actor}.entropy_coeff", chosen.entropy_coef
    yield f"{actor}.calculate_entropy", True
    with_kl_loss = not isinstance(chosen, PpoSettings) and chosen.kl_coef > 0
    yield f"{actor}.use_kl_loss", with_kl_loss
    if with_kl_loss:
        yield f"{actor}.kl_loss_coef", chosen.kl_coef
        yield f"{actor}.kl_loss_type", "low_var_kl"
    yield f"{actor}.data_loader_seed", chosen.seed
    yield f"{actor}.fsdp_config.seed", chosen.seed
    if chosen.precision in ("fp32", "fp16"):
        yield f"{actor}.fsdp_config.dtype", "float32" if chosen.precision == "fp32" else "float16"
    # `hf_model`: a folder that plain `from_pretrained` loads, beside the shards that a resume needs
    yield f"{actor}.checkpoint.save_contents", ("model", "optimizer", "extra", "hf_model")
    yield "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu", micro
    reference = spec.model_paths.get("ref_model_path") or spec.config.get("ref_model_path")
    if reference and str(reference) != spec.model_path:
        # not in verl's own yaml: its worker looks for it there (fsdp_workers.py, `self.config.ref.get("model")`)
        yield "++actor_rollout_ref.ref.model.path", str(reference)


def _optimizer(place: str, chosen: RolloutSettings) -> Iterator[tuple[str, Value]]:
    yield f"{place}.lr", chosen.learning_rate
    yield f"{place}.weight_decay", chosen.weight_decay
    yield f"{place}.betas", (chosen.adam_beta1, chosen.adam_beta2)
    yield f"{place}.lr_warmup_steps", chosen.warmup_steps
    yield f"{place}.lr_scheduler_type", _SCHEDULES.get(chosen.lr_scheduler_type, "constant")


def _rollout(spec: RunSpec, chosen: RolloutSettings) -> Iterator[tuple[str, Value]]:
    rollout = "actor_rollout_ref.rollout"
    yield f"{rollout}.name", "vllm"
    yield f"{rollout}.n", chosen.rollout_n
    yield f"{rollout}.temperature", chosen.temperature
    yield f"{rollout}.top_p", chosen.top_p
    yield f"{rollout}.tensor_model_parallel_size", 1
    yield f"{rollout}.gpu_memory_utilization", _GPU_SHARE
    yield f"{rollout}.log_prob_micro_batch_size_per_gpu", _batch(spec, chosen).per_device
    if chosen.lora_enabled:
        yield f"{rollout}.load_format", "safetensors"  # vLLM has to read the frozen base itself


def _critic(spec: RunSpec, chosen: PpoSettings) -> Iterator[tuple[str, Value]]:
    yield "critic.model.path", spec.model_path
    yield "critic.model.enable_gradient_checkpointing", chosen.gradient_checkpointing
    if chosen.lora_enabled:
        yield "critic.model.lora_rank", chosen.lora_rank
        yield "critic.model.lora_alpha", chosen.lora_alpha
        yield "critic.model.target_modules", chosen.lora_target_modules or "all-linear"
    yield from _optimizer("critic.optim", chosen)
    yield "critic.grad_clip", chosen.max_grad_norm
    yield "critic.ppo_micro_batch_size_per_gpu", _batch(spec, chosen).per_device
    yield "critic.cliprange_value", chosen.clip_ratio
    yield "critic.data_loader_seed", chosen.seed


def _reward(files: VerlFiles) -> Iterator[tuple[str, Value]]:
    yield "reward_model.enable", False
    yield "custom_reward_function.path", str(files.reward)
    yield "custom_reward_function.name", "compute_score"
    yield "++custom_reward_function.reward_kwargs.socket_path", str(files.judge)


def _trainer(
    spec: RunSpec, chosen: RolloutSettings, files: VerlFiles, steps: int
) -> Iterator[tuple[str, Value]]:
    yield "trainer.project_name", "trainyard"
    yield "trainer.experiment_name", spec.job
    yield "trainer.logger", ("console",)
    yield "trainer.nnodes", 1
    yield "trainer.n_gpus_per_node", _world(spec)
    yield "trainer.save_freq", chosen.save_steps
    yield "trainer.test_freq", -1 if files.held_out is None else chosen.eval_steps
    yield "trainer.val_before_train", False
    yield "trainer.total_training_steps", steps
    yield "trainer.total_epochs", math.ceil(steps / max(1, files.rows // chosen.batch_size))
    yield "trainer.default_local_dir", str(files.checkpoints)
    yield "trainer.resume_mode", "disable" if files.resume_from is None else "resume_path"
    if files.resume_from is not None:
        yield "trainer.resume_from_path", str(files.resume_from)


def _notes(chosen: RolloutSettings) -> Iterator[tuple[str, str]]:
    if chosen.lr_scheduler_type not in _SCHEDULES:
        yield (
            f"verl knows constant and cosine schedules; lr_scheduler_type {chosen.lr_scheduler_type} becomes constant.",
            f"verl 只有 constant 和 cosine 两种学习率策略；lr_scheduler_type {chosen.lr_scheduler_type} 按 constant 处理。",
        )
    if chosen.lora_enabled and chosen.lora_dropout:
        yield (
            "verl trains LoRA without dropout; lora_dropout has no effect.",
            "verl 的 LoRA 没有 dropout；lora_dropout 不起作用。",
        )
    if isinstance(chosen, PpoSettings):
        yield (
            "verl's critic is a model of its own with its own optimizer; vf_coef has no effect.",
            "verl 的 critic 是独立模型并有独立优化器；vf_coef 不起作用。",
        )
    if not chosen.optim.startswith("adamw_torch"):
        yield (
            f"verl trains with AdamW; optim {chosen.optim} has no effect.",
            f"verl 使用 AdamW；optim {chosen.optim} 不起作用。",
        )
    if chosen.early_stopping_patience is not None:
        yield (
            "With engine verl early_stopping_patience has no effect.",
            "使用 verl 引擎时 early_stopping_patience 不起作用。",
        )


def _reward_kinds(spec: RunSpec) -> Iterator[object]:
    yield spec.config.get("reward_fn_type")
    for component in spec.config.get("rewards") or ():
        yield component.get("reward_fn_type")


def _invalid(en: str, zh: str) -> TrainingFailure:
    return TrainingFailure(Reason.CONFIG_INVALID, en, zh)
