"""The model and its tokenizer: a full folder, a hub id, or a LoRA checkpoint that is merged or continued."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    load_peft_weights,
    set_peft_model_state_dict,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from services.gpu_agent.checkpoint_store import LEFTOVER_PREFIX, Kind
from services.gpu_agent.trainers import ranks
from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.settings import Precision, Settings
from shared.jobs.reasons import Reason
from shared.preflight.paths import looks_like_hub_id
from shared.runs import RunSpec

ADAPTER_CONFIG = "adapter_config.json"
MERGED_FOLDER = "base-model"
"""In the checkpoint folder: the base of a LoRA run that started from a merged LoRA checkpoint."""

Head = Literal["language", "score"]
"""What the model ends in: the vocabulary, or one number for a whole text (a reward model)."""

SCORE = "score"
"""Name of the layer that gives the one number, in models for sequence classification."""
_TASKS: dict[Head, str] = {"language": "CAUSAL_LM", "score": "SEQ_CLS"}
_MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_BARE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Numerics:
    """How weights are held and computed."""

    weights: torch.dtype
    bf16: bool
    fp16: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a trainer starts from; `lora` is the adapter still to be added."""

    model: Any
    tokenizer: Any
    lora: LoraConfig | None
    kind: Kind


def numerics(precision: Precision, device: str, *, lora: bool) -> Numerics:
    """Choose data types. `auto`: float32 on the CPU, else bfloat16 where the GPU has it, else float32.

    Trained weights stay in float32 and compute in half precision (autocast); frozen ones, below LoRA, are held in half.
    Raises TrainingFailure for float16 on the CPU.
    """
    if precision == "auto":
        precision = (
            "fp32" if device == "cpu" else ("bf16" if torch.cuda.is_bf16_supported() else "fp32")
        )
    if precision == "fp16" and device == "cpu":
        raise TrainingFailure(
            Reason.CONFIG_INVALID,
            "precision fp16 needs a GPU; use auto, fp32 or bf16 on this host.",
            "precision fp16 需要 GPU；在该主机上请使用 auto、fp32 或 bf16。",
        )
    if precision == "fp32":
        return Numerics(torch.float32, bf16=False, fp16=False)
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    return Numerics(
        half if lora else torch.float32, bf16=precision == "bf16", fp16=precision == "fp16"
    )


def load(
    spec: RunSpec, settings: Settings, numbers: Numerics, *, head: Head = "language"
) -> Loaded:
    """Load what `model_path` names, ending in `head`. Raises TrainingFailure, and what the libraries raise."""
    path = spec.model_path
    folder = _local_folder(path)
    lora = _lora_config(settings, head) if settings.lora_enabled else None
    if lora is not None and folder is None:
        lora.revision = split_revision(path)[1]
    if folder is None or not (folder / ADAPTER_CONFIG).is_file():
        _require_model_folder(folder)
        return Loaded(
            _base(path, numbers, head), _tokenizer(path, None), lora, "lora" if lora else "full"
        )
    base = _base_of(folder)
    if settings.lora_from_checkpoint == "continue":
        if lora is None:
            raise TrainingFailure(
                Reason.CONFIG_INVALID,
                "lora_from_checkpoint 'continue' trains the adapter, so lora_enabled must be true; use 'merge' for full fine-tuning.",
                "lora_from_checkpoint 为 'continue' 时训练的是适配器，需要 lora_enabled 为 true；全参数训练请用 'merge'。",
            )
        model = _adapted(base, folder, numbers, head, trainable=True)
        return Loaded(model, _tokenizer(str(folder), base), None, "lora")
    tokenizer = _tokenizer(str(folder), base)
    if lora is None:
        return Loaded(_merged(base, folder, numbers, head), tokenizer, None, "full")
    target = spec.checkpoint_dir / MERGED_FOLDER
    with ranks.first_goes_ahead():
        merged = _merged_on_disk(base, folder, tokenizer, numbers, target, head)
    return Loaded(_base(str(merged), numbers, head), tokenizer, lora, "lora")


def reference(path: str, numbers: Numerics) -> Any:
    """Load a reference model: a folder, a hub id, or a LoRA checkpoint, merged. Raises TrainingFailure."""
    folder = _local_folder(path)
    if folder is not None and (folder / ADAPTER_CONFIG).is_file():
        return _merged(_base_of(folder), folder, numbers)
    _require_model_folder(folder)
    return _causal_lm(path, numbers)


def reward_models(paths: Mapping[str, str]) -> dict[str, str]:
    """Return model paths by their parameter, reward models of the Hub fetched: the reward service reads folders only."""
    return {
        place: _fetched(path)
        if place.endswith("reward_model_path") and _local_folder(path) is None
        else path
        for place, path in paths.items()
    }


def _fetched(hub_id: str) -> str:
    name, revision = split_revision(hub_id)
    with ranks.first_goes_ahead():
        return str(
            snapshot_download(
                name,
                revision=revision,
                token=os.environ.get("HF_TOKEN"),
                allow_patterns=list(_MODEL_FILES),
            )
        )


def split_revision(path: str) -> tuple[str, str | None]:
    """Return a hub id without its revision, and that: `org/name@v1` names one. A folder has none."""
    if Path(path).is_dir():
        return path, None
    name, _, revision = path.partition("@")
    return name, revision or None


def _lora_config(settings: Settings, head: Head) -> LoraConfig:
    modules = settings.lora_target_modules or "all-linear"
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type=_TASKS[head],
        modules_to_save=[SCORE] if head == "score" else None,
    )


def _local_folder(path: str) -> Path | None:
    """Return the folder, or None for a hub id. Raises TrainingFailure where it can be neither."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise TrainingFailure(
            Reason.MODEL_INVALID,
            f"model_path {path} is a file; give the folder that holds config.json.",
            f"model_path {path} 是文件；请填写包含 config.json 的目录。",
        )
    if not folder.is_absolute() and (looks_like_hub_id(path) or _BARE_NAME.fullmatch(path)):
        return None
    raise TrainingFailure(
        Reason.MODEL_MISSING,
        f"There is no folder {path} on this host.",
        f"该主机上没有目录 {path}。",
    )


def _require_model_folder(folder: Path | None) -> None:
    if folder is not None and not (folder / "config.json").is_file():
        raise TrainingFailure(
            Reason.MODEL_INVALID,
            f"{folder} holds no config.json (nor a LoRA adapter_config.json).",
            f"{folder} 中没有 config.json（也没有 LoRA 的 adapter_config.json）。",
        )


def _base_of(folder: Path) -> str:
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        base, revision = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingFailure(
            Reason.MODEL_INVALID,
            f"{folder / ADAPTER_CONFIG} cannot be read ({error}).",
            f"无法读取 {folder / ADAPTER_CONFIG}（{error}）。",
        ) from error
    if not base or _local_or_missing(str(base)):
        raise TrainingFailure(
            Reason.MODEL_MISSING,
            f"The LoRA checkpoint {folder} was made on the base model {base!r}, which is not on this host.",
            f"LoRA 检查点 {folder} 基于模型 {base!r}，该主机上没有这个模型。",
        )
    if revision and not Path(base).is_dir():
        return f"{base}@{revision}"
    return str(base)


def _local_or_missing(base: str) -> bool:
    return Path(base).is_absolute() and not Path(base).is_dir()


def _causal_lm(path: str, numbers: Numerics) -> Any:
    return _base(path, numbers, "language")


def _base(path: str, numbers: Numerics, head: Head) -> Any:
    """Load a full model. A language model has no score yet: that layer alone may begin at random."""
    auto: Any = AutoModelForCausalLM if head == "language" else AutoModelForSequenceClassification
    options = {} if head == "language" else {"num_labels": 1}
    name, revision = split_revision(path)
    model, info = auto.from_pretrained(
        name,
        revision=revision or "main",
        dtype=numbers.weights,
        output_loading_info=True,
        **options,
    )
    new = () if head == "language" else (f"{SCORE}.weight",)
    missing = sorted(key for key in info["missing_keys"] if key not in new)
    missing += sorted(str(k) for k in info.get("mismatched_keys", ()))
    if missing:
        raise TrainingFailure(
            Reason.MODEL_INVALID,
            f"{path} lacks {len(missing)} weights, among them {', '.join(missing[:3])}; they would be random.",
            f"{path} 缺少 {len(missing)} 个权重，例如 {', '.join(missing[:3])}；这些权重会被随机初始化。",
        )
    return model


def _tokenizer(path: str, fallback: str | None) -> Any:
    try:
        name, revision = split_revision(path)
        return AutoTokenizer.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError) as error:
        if fallback is not None:
            return _tokenizer(fallback, None)
        if not Path(path).is_dir():
            raise
        raise TrainingFailure(
            Reason.MODEL_INVALID,
            f"{path} holds no usable tokenizer ({error}).",
            f"{path} 中没有可用的分词器（{error}）。",
        ) from error


def _adapted(base: str, folder: Path, numbers: Numerics, head: Head, *, trainable: bool) -> Any:
    """Load an adapter on its base. One of a language model changes the same layers below a new score."""
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = not trainable
    model = _base(base, numbers, head)
    if head == "language" or config.task_type == _TASKS[head]:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, config=config)
    config.task_type, config.modules_to_save = _TASKS[head], [SCORE]
    score = {f"base_model.model.{SCORE}.weight": model.get_parameter(f"{SCORE}.weight").detach()}
    adapted = get_peft_model(model, config)
    set_peft_model_state_dict(adapted, load_peft_weights(str(folder), device="cpu") | score)
    return adapted


def _merged(base: str, folder: Path, numbers: Numerics, head: Head = "language") -> Any:
    merged = _adapted(base, folder, numbers, head, trainable=False).merge_and_unload()
    merged.requires_grad_(True)  # peft leaves the base frozen
    return merged


def _merged_on_disk(  # the folder, what it lies on, and how and where it is written
    base: str, folder: Path, tokenizer: Any, numbers: Numerics, target: Path, head: Head
) -> Path:
    """Save the merged model once, so that the new adapter has a base that can be loaded by its path."""
    if (target / "config.json").is_file():
        return target
    temporary = target.with_name(f"{LEFTOVER_PREFIX}{target.name}")
    temporary.mkdir(parents=True, exist_ok=True)
    _merged(base, folder, numbers, head).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(target)
    return target
