"""The parameters of PRODUCT section 2 that supervised fine-tuning reads, parsed once from the flat config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from services.gpu_agent.trainers.failures import TrainingFailure
from shared.jobs.reasons import Reason

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class SftSettings:
    """Resolved parameters; the defaults are those of the public interface."""

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
    packing: bool = False
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
    def best_metric(self) -> str:
        """The metric that names the best checkpoint: `stop_metric` where evaluation gives it, else accuracy, else loss."""
        evaluated = ("eval_loss", "eval_accuracy") if self.eval_generate else ("eval_loss",)
        return next((m for m in evaluated if m == self.stop_metric), evaluated[-1])


def parse(config: Mapping[str, Any]) -> SftSettings:
    """Take what this trainer needs from a job's config; None stands for the default. Raises TrainingFailure."""
    names = {f.name for f in fields(SftSettings)}
    given = {name: value for name, value in config.items() if name in names and value is not None}
    modules = given.get("lora_target_modules")
    if isinstance(modules, list | tuple):
        given["lora_target_modules"] = tuple(modules)
    if given.get("max_steps", 1) <= 0:
        given.pop("max_steps")
    settings = SftSettings(**given)
    if (settings.stop_metric is None) != (settings.stop_value is None):
        raise TrainingFailure(
            Reason.CONFIG_INVALID,
            "stop_metric and stop_value belong together; give both or neither.",
            "stop_metric 与 stop_value 必须同时给出，或都不给。",
        )
    return settings
