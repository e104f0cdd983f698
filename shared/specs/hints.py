"""How a parameter tells forms and documents about itself: group, unit and a one-line hint in two languages."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

Group = Literal[
    "essential",
    "training",
    "optimizer",
    "lora",
    "measure",
    "resources",
    "reward",
    "rl",
    "connection",
]
Unit = Literal[
    "steps", "epochs", "tokens", "examples", "minutes", "gpus", "nodes", "completions", "cost"
]

GROUPS: Final[dict[Group, tuple[str, str]]] = {
    "essential": ("Essentials", "基本"),
    "training": ("Training", "训练"),
    "optimizer": ("Optimizer", "优化器"),
    "lora": ("LoRA", "LoRA"),
    "rl": ("Alignment", "对齐与强化学习"),
    "reward": ("Reward", "奖励"),
    "measure": ("Measuring and stopping", "评估与停止"),
    "resources": ("Resources", "资源"),
    "connection": ("Connection", "连接"),
}

UNITS: Final[dict[Unit, tuple[str, str]]] = {
    "steps": ("steps", "步"),
    "epochs": ("epochs", "轮"),
    "tokens": ("tokens", "词元"),
    "examples": ("examples", "条"),
    "minutes": ("minutes", "分钟"),
    "gpus": ("GPUs per node", "GPU/节点"),
    "nodes": ("nodes", "节点"),
    "completions": ("completions", "个回答"),
    "cost": ("provider's currency", "服务商货币"),
}


class Parameters(BaseModel):
    """Strict, frozen, finite: `"5"` is not 5, `true` is not 1, NaN and unknown names are refused."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )


def hint(group: Group, en: str, zh: str, unit: Unit | None = None) -> Any:
    """Return the annotation that describes one parameter; forms and documents read it from the schema."""
    units: JsonDict | None = None if unit is None else {"en": UNITS[unit][0], "zh": UNITS[unit][1]}
    return Field(json_schema_extra={"group": group, "hint": {"en": en, "zh": zh}, "unit": units})
