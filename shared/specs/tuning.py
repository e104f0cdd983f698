"""Optimizer and LoRA parameters; defaults not fixed by the product are those of transformers 5.23 and peft 0.21."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator

from shared.specs.hints import Parameters, hint
from shared.specs.text import one_line, refuse

MODULES_AT_MOST = 100
MODULE_CHARACTERS = 200


def _modules(value: object) -> str | tuple[str, ...]:
    if value == "all-linear":
        return "all-linear"
    names = tuple(value) if isinstance(value, (list, tuple)) else ()
    if not 1 <= len(names) <= MODULES_AT_MOST:
        raise refuse(
            "wrong_type",
            'give "all-linear" or a list of 1 to 100 module names such as ["q_proj", "v_proj"]',
            '请填写 "all-linear"，或 1 到 100 个模块名的列表，例如 ["q_proj", "v_proj"]',
            '"all-linear" | [name, …]',
        )
    return tuple(_module(name) for name in names)


def _module(name: object) -> str:
    if (
        not isinstance(name, str)
        or not 1 <= len(name) <= MODULE_CHARACTERS
        or not name.isprintable()
    ):
        raise refuse(
            "invalid_name",
            "every module name is a text of 1 to 200 printable characters, such as q_proj",
            "每个模块名应为 1 到 200 个可见字符的文本，例如 q_proj",
            '"all-linear" | [name, …]',
        )
    return one_line(name)


def _as_json(value: str | tuple[str, ...]) -> str | list[str]:
    return value if isinstance(value, str) else list(value)


LoraTargets = Annotated[
    str | tuple[str, ...],
    PlainValidator(_modules, json_schema_input_type=Literal["all-linear"] | list[str]),
    PlainSerializer(_as_json),
]


class OptimizerParameters(Parameters):
    """The optimizer and its schedule."""

    learning_rate: Annotated[
        float,
        Field(gt=0, le=1),
        hint(
            "essential",
            "Size of an optimizer step; LoRA usually takes ten times that of full fine-tuning.",
            "优化步长；LoRA 通常取全参微调的十倍。",
        ),
    ] = 1e-5
    lr_scheduler_type: Annotated[
        Literal[
            "linear",
            "cosine",
            "cosine_with_restarts",
            "polynomial",
            "constant",
            "constant_with_warmup",
            "inverse_sqrt",
        ],
        hint(
            "optimizer",
            "How the learning rate goes down after warm-up.",
            "预热之后学习率如何下降。",
        ),
    ] = "linear"
    warmup_steps: Annotated[
        int,
        Field(ge=0, le=1_000_000),
        hint(
            "optimizer",
            "Steps in which the learning rate rises from 0.",
            "学习率从 0 上升所用的步数。",
            "steps",
        ),
    ] = 0
    optim: Annotated[
        Literal["adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop"],
        hint(
            "optimizer",
            "The optimizer; adafactor and sgd need less memory than AdamW.",
            "优化器；adafactor 和 sgd 比 AdamW 省显存。",
        ),
    ] = "adamw_torch_fused"
    adam_beta1: Annotated[
        float,
        Field(ge=0, lt=1),
        hint("optimizer", "Decay of AdamW's first moment.", "AdamW 一阶矩的衰减系数。"),
    ] = 0.9
    adam_beta2: Annotated[
        float,
        Field(ge=0, lt=1),
        hint(
            "optimizer",
            "Decay of AdamW's second moment; 0.98 reacts faster.",
            "AdamW 二阶矩的衰减系数；0.98 反应更快。",
        ),
    ] = 0.999
    weight_decay: Annotated[
        float,
        Field(ge=0, le=1),
        hint("optimizer", "Pull of the weights towards zero.", "权重衰减强度。"),
    ] = 0.0
    max_grad_norm: Annotated[
        float,
        Field(ge=0, le=1_000_000),
        hint(
            "optimizer",
            "Longer gradients are cut to this norm; 0 turns it off.",
            "超过该范数的梯度会被裁剪；0 表示不裁剪。",
        ),
    ] = 1.0


class LoraParameters(Parameters):
    """Low-rank adapters instead of all weights."""

    lora_enabled: Annotated[
        bool,
        hint(
            "lora",
            "Train a small adapter instead of all weights: far less memory.",
            "只训练小型适配器而非全部权重，显存占用小得多。",
        ),
    ] = False
    lora_rank: Annotated[
        int,
        Field(ge=1, le=1024),
        hint(
            "lora",
            "Size of the adapter: 4-8 for small tasks, 16-32 for large.",
            "适配器的秩：小任务 4-8，大任务 16-32。",
        ),
    ] = 8
    lora_alpha: Annotated[
        int,
        Field(ge=1, le=8192),
        hint(
            "lora",
            "Scale of the adapter; twice the rank is a good start.",
            "适配器缩放系数；一般取秩的两倍。",
        ),
    ] = 16
    lora_dropout: Annotated[
        float,
        Field(ge=0, lt=1),
        hint(
            "lora",
            "Share of adapter inputs dropped while training.",
            "训练时适配器输入的丢弃比例。",
        ),
    ] = 0.0
    lora_target_modules: Annotated[
        LoraTargets,
        hint(
            "lora",
            'Layers that get an adapter: "all-linear", or names such as ["q_proj", "v_proj"].',
            '加适配器的层："all-linear"，或层名列表，例如 ["q_proj", "v_proj"]。',
        ),
    ] = "all-linear"
    lora_from_checkpoint: Annotated[
        Literal["merge", "continue"] | None,
        hint(
            "lora",
            "Where model_path is a LoRA checkpoint: merge it into its base first (null does so too), or continue the adapter.",
            "当 model_path 是 LoRA 检查点时：merge 先并入基座（null 亦然），continue 继续训练该适配器。",
        ),
    ] = None
