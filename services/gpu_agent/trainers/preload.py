"""The imports that make a start slow, done once in the zygote: nothing here may use CUDA, OpenMP or tokenizer threads."""

from __future__ import annotations

import importlib
import os

_MODULES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "services.gpu_agent.trainers.sft",
    "services.gpu_agent.trainers.dpo",
    "services.gpu_agent.trainers.reward_model",
    "services.gpu_agent.trainers.ppo",
    "services.gpu_agent.trainers.grpo",
    "services.gpu_agent.trainers.gspo",
    # model code is loaded by name in `from_pretrained`; these families are the usual ones
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.llama.modeling_llama",
)
_ENVIRONMENT = {
    # read by the libraries when they are imported: nothing is reported to anyone, no bars in the log
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


def set_import_environment() -> None:
    """Set what the libraries read while they are imported; what the user has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def preload() -> None:
    """Import everything a trainer needs. Raises ImportError where the extra `agent` is not installed."""
    set_import_environment()
    for name in _MODULES:
        importlib.import_module(name)
