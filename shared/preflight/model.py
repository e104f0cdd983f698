"""The check of a model before a run: a local folder, a LoRA adapter, or a Hugging Face id, without importing torch."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from shared.preflight.adapter import check_adapter_fits
from shared.preflight.finding import Finding, shown
from shared.preflight.model_files import read_json, read_weights, whole
from shared.preflight.paths import looks_like_hub_id
from shared.preflight.safetensors_header import FIELD, Tensor
from shared.preflight.tokenizer_files import check_tokenizer, remote_code

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
_NOT_LORA = ("embed", "wte", "wpe", "lm_head", "norm", "score")
_BASES_FOLLOWED = 3


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What a model is, as far as its files tell, and what is wrong with it.

    `parameters` counts stored elements (of the base for an adapter), `linear_widths` is the sum of inputs and outputs
    of its linear layers: `lora_rank` times that is the size of an all-linear adapter. `attention_heads`,
    `kv_heads`, `intermediate_size` and the like come from config.json and are None where it does not tell.
    """

    path: str
    source: Literal["local", "hub"]
    kind: Literal["full", "adapter", "unknown"] = "unknown"
    errors: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()
    parameters: int | None = None
    adapter_parameters: int | None = None
    weights_bytes: int | None = None
    dtype: str | None = None
    model_type: str | None = None
    hidden_size: int | None = None
    layers: int | None = None
    intermediate_size: int | None = None
    attention_heads: int | None = None
    kv_heads: int | None = None
    vocab_size: int | None = None
    context_length: int | None = None
    linear_widths: int | None = None
    base_model: str | None = None
    has_chat_template: bool | None = None

    @property
    def ok(self) -> bool:
        """Whether a run may use this model."""
        return not self.errors


def check_model(path: Path | str, *, conversational: bool = False) -> ModelReport:
    """Check the model at `path` (an allowed path, or org/name); with `conversational` a chat template is required.

    Reads configuration and safetensors headers only. Links inside the folder are followed, since the Hugging Face
    cache is made of them. Nothing in the files makes it raise.
    """
    return _check(str(path), conversational, _BASES_FOLLOWED)


def _check(text: str, conversational: bool, bases: int) -> ModelReport:
    folder = Path(text).expanduser() if text.strip() and "\x00" not in text else None
    try:
        if folder is None or not folder.exists():
            return _absent(text)
        if not folder.is_dir():
            return _failed(text, _not_a_folder(text))
        if (folder / ADAPTER_CONFIG).is_file():
            return _check_adapter(folder, conversational, bases)
        return _check_full(folder, conversational)
    except (OSError, RuntimeError, ValueError) as error:
        reason = shown(str(error))
        return _failed(
            text,
            Finding(
                "model_not_readable",
                FIELD,
                f"{shown(text, 200)} cannot be read: {reason}.",
                f"无法读取 {shown(text, 200)}：{reason}。",
                value=shown(text, 200),
            ),
        )


def _absent(text: str) -> ModelReport:
    name = shown(text, 200)
    if looks_like_hub_id(text):
        note = Finding(
            "model_will_be_fetched",
            FIELD,
            f"There is no local folder {name}; it will be fetched from the Hugging Face Hub when the job starts.",
            f"本地没有目录 {name}，任务开始时会从 Hugging Face Hub 下载。",
            value=name,
            severity="warning",
        )
        return ModelReport(text, "hub", warnings=(note,))
    return _failed(
        text,
        Finding(
            "model_not_found",
            FIELD,
            f"There is no model folder {name or '-'}. Give a folder with config.json, or a Hugging Face id such as org/name.",
            f"找不到模型目录 {name or '-'}。请填写含 config.json 的目录，或形如 org/name 的 Hugging Face 模型。",
            value=name,
            allowed="folder or org/name",
        ),
    )


def _failed(text: str, finding: Finding) -> ModelReport:
    return ModelReport(text, "local", errors=(finding,))


def _not_a_folder(text: str) -> Finding:
    name = shown(text, 200)
    return Finding(
        "not_a_model",
        FIELD,
        f"{name} is a file. Give the folder that holds config.json and the weights.",
        f"{name} 是文件。请填写包含 config.json 和权重的目录。",
        value=name,
        allowed="folder",
    )


def _check_full(folder: Path, conversational: bool) -> ModelReport:
    if not (folder / CONFIG).is_file():
        name = shown(str(folder), 200)
        return _failed(
            str(folder),
            Finding(
                "not_a_model",
                FIELD,
                f"{name} holds no config.json. Give the folder of a Hugging Face model.",
                f"{name} 中没有 config.json。请填写 Hugging Face 格式的模型目录。",
                value=name,
                allowed=CONFIG,
            ),
        )
    config = read_json(folder / CONFIG)
    if isinstance(config, Finding):
        return _failed(str(folder), config)
    errors = list(_config_failures(config))
    weights = read_weights(folder)
    tokenizer = check_tokenizer(folder)
    errors += weights.errors + list(tokenizer.errors)
    sizes = _sizes(config)
    errors += _vocabulary_failures(sizes.vocab_size, tokenizer.highest_id)
    if conversational and tokenizer.present and not tokenizer.has_chat_template:
        errors.append(_no_template(folder))
    known = bool(weights.tensors) and not weights.errors
    return replace(
        sizes,
        path=str(folder),
        kind="full",
        errors=tuple(errors),
        has_chat_template=tokenizer.has_chat_template,
        parameters=sum(t.size for t in weights.tensors.values()) if known else None,
        weights_bytes=weights.bytes if known else None,
        dtype=_main_dtype(weights.tensors.values()) if known else None,
        linear_widths=_linear_widths(weights.tensors) if known else None,
    )


def _check_adapter(folder: Path, conversational: bool, bases: int) -> ModelReport:
    settings = read_json(folder / ADAPTER_CONFIG)
    if isinstance(settings, Finding):
        return _failed(str(folder), settings)
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip() or bases <= 0:
        return _failed(
            str(folder),
            Finding(
                "adapter_base_missing",
                FIELD,
                "adapter_config.json names no usable base model (base_model_name_or_path). Write its path or id there.",
                "adapter_config.json 没有写明可用的基础模型（base_model_name_or_path）。请补上路径或名称。",
                value=ADAPTER_CONFIG,
            ),
        )
    weights = read_weights(folder, "adapter_model.safetensors", None)
    under = _check(base, False, bases - 1)
    errors = [*weights.errors, *under.errors]
    has_template = under.has_chat_template or check_tokenizer(folder).has_chat_template
    if under.source == "local" and under.ok and not weights.errors:
        errors += check_adapter_fits(
            weights.tensors, read_weights(Path(base).expanduser()).tensors, base
        )
        if conversational and not has_template:
            errors.append(_no_template(folder))
    return replace(
        under,
        path=str(folder),
        source="local",
        kind="adapter",
        errors=tuple(errors),
        base_model=base,
        has_chat_template=has_template,
        adapter_parameters=sum(t.size for t in weights.tensors.values()),
    )


def _config_failures(config: Mapping[str, object]) -> Iterable[Finding]:
    if config.get("auto_map"):
        yield remote_code(CONFIG)
    if not isinstance(config.get("model_type"), str):
        yield Finding(
            "not_a_model",
            FIELD,
            "config.json has no model_type. Copy the model's own config.json.",
            "config.json 缺少 model_type。请使用模型自带的 config.json。",
            value=CONFIG,
            allowed="model_type",
        )


def _sizes(config: Mapping[str, object]) -> ModelReport:
    kind = config.get("model_type")
    nested = config.get("text_config")
    own = nested if isinstance(nested, dict) else config
    heads = whole(own, "num_attention_heads", "n_head")
    return ModelReport(
        "",
        "local",
        model_type=kind if isinstance(kind, str) else None,
        hidden_size=whole(own, "hidden_size", "n_embd", "d_model"),
        layers=whole(own, "num_hidden_layers", "n_layer"),
        intermediate_size=whole(own, "intermediate_size", "n_inner", "ffn_dim"),
        attention_heads=heads,
        kv_heads=whole(own, "num_key_value_heads") or heads,
        vocab_size=whole(own, "vocab_size"),
        context_length=whole(own, "max_position_embeddings", "n_positions"),
    )


def _vocabulary_failures(size: int | None, highest: int | None) -> list[Finding]:
    if size is None or highest is None or highest < size:
        return []
    return [
        Finding(
            "vocab_mismatch",
            FIELD,
            f"The tokenizer has token ids up to {highest}, the model knows only {size}. Use the tokenizer that belongs to the model.",
            f"分词器的最大编号为 {highest}，而模型词表只有 {size}。请使用与模型配套的分词器。",
            value=str(highest),
            allowed=f"< {size}",
        )
    ]


def _no_template(folder: Path) -> Finding:
    name = shown(str(folder), 200)
    return Finding(
        "chat_template_missing",
        FIELD,
        f"The dataset holds conversations, but {name} has no chat template. Use an instruct model, add chat_template.jinja, or use prompt/response rows.",
        f"数据集是对话格式，但 {name} 没有对话模板。请使用 instruct 模型、添加 chat_template.jinja，或改用 prompt/response 数据。",
        value=name,
    )


def _main_dtype(tensors: Iterable[Tensor]) -> str | None:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.size
    return sizes.most_common(1)[0][0] if sizes else None


def _linear_widths(tensors: Mapping[str, Tensor]) -> int:
    return sum(
        sum(t.shape)
        for name, t in tensors.items()
        if len(t.shape) == 2 and not any(part in name.lower() for part in _NOT_LORA)
    )
