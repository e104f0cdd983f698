"""The parameters of PRODUCT section 2 that trainers read, parsed once from the flat config; one class a family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from services.gpu_agent.trainers.failures import TrainingFailure
from shared.jobs.reasons import Reason

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Resolved parameters that every algorithm has; the defaults are those of the public interface."""

    num_epochs: float = 1
    max_steps: int | None = None
    learning_rate: float = 1e-5
    batch_size: int = 2
    gradient_accumulation_steps: int = 1
    context_length: int = 512
    save_steps: int = 20
    save_total_limit: int | None = 3
    eval_steps: int = 20
    logging_steps: int = 1
    warmup_steps: int = 0
    lr_scheduler_type: str = "linear"
    optim: str = "adamw_torch_fused"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 42
    precision: Precision = "auto"
    gradient_checkpointing: bool = True
    eval_generate: bool = False
    eval_samples: int = 100
    stop_metric: str | None = None
    stop_value: float | None = None
    early_stopping_patience: int | None = None
    time_limit_minutes: float | None = None
    lora_enabled: bool = False
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    lora_target_modules: str | tuple[str, ...] | None = None
    lora_from_checkpoint: Literal["merge", "continue"] = "merge"

    @property
    def evaluated(self) -> tuple[str, ...]:
        """What an evaluation gives that may name the best checkpoint, the usual judge last."""
        return ("eval_loss", "eval_accuracy") if self.eval_generate else ("eval_loss",)

    @property
    def best_metric(self) -> str:
        """The metric that names the best checkpoint: `stop_metric` where evaluation gives it, else the usual judge."""
        return next((m for m in self.evaluated if m == self.stop_metric), self.evaluated[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSettings(Settings):
    """Supervised fine-tuning."""

    packing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSettings(Settings):
    """DPO and reward models: pairs of a chosen and a rejected response."""

    beta: float = 0.1

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Pairs give both; accuracy moves in steps, so the loss is the finer judge."""
        return ("eval_accuracy", "eval_loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings(Settings):
    """PPO, GRPO and GSPO: `batch_size` counts the prompts of one step."""

    kl_coef: float = 0.001
    clip_ratio: float = 0.2
    entropy_coef: float = 0.0
    rollout_n: int = 5
    temperature: float = 1.0
    top_p: float = 1.0
    max_completion_length: int = 512
    min_valid_reward_rate: float = 0.8

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Greedy completions are scored in any case; `eval_generate` names their accuracy too."""
        return ("eval_reward", "eval_accuracy") if self.eval_generate else ("eval_reward",)


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoSettings(RolloutSettings):
    """PPO: a value head, and several passes over the completions of one rollout."""

    vf_coef: float = 0.1
    gae_lambda: float = 0.95
    ppo_epochs: int = 4
    ppo_minibatches: int = 1


Chosen = TypeVar("Chosen", bound=Settings)


def parse(config: Mapping[str, Any], kind: type[Chosen]) -> Chosen:
    """Take what a trainer needs from a job's config; None stands for the default. Raises TrainingFailure."""
    names = {f.name for f in fields(kind)}
    given = {name: value for name, value in config.items() if name in names and value is not None}
    modules = given.get("lora_target_modules")
    if isinstance(modules, list | tuple):
        given["lora_target_modules"] = tuple(modules)
    if given.get("max_steps", 1) <= 0:
        given.pop("max_steps")
    settings = kind(**given)
    if (settings.stop_metric is None) != (settings.stop_value is None):
        raise TrainingFailure(
            Reason.CONFIG_INVALID,
            "stop_metric and stop_value belong together; give both or neither.",
            "stop_metric 与 stop_value 必须同时给出，或都不给。",
        )
    return settings
