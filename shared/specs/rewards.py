"""Reward parameters: a named provider, a judge or reward model of the job's own, a rule, or several combined."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue

from shared.specs.hints import Parameters, hint
from shared.specs.problems import LARGEST_EXACT
from shared.specs.text import (
    ApiBase,
    ComponentName,
    Label,
    ModelPath,
    SecretLine,
    as_tuple,
    printable,
    refuse,
)

DASHSCOPE: Final = "https://dashscope.aliyuncs.com/compatible-mode/v1"
RULE_DEPTH: Final = 16
RULE_BYTES: Final = 65_536
RULE_NODES: Final = 5_000

RuleName = Literal["math_verify", "format_check", "rule_based", "self_play"]


def _bounded(config: object) -> None:
    """Refuse a rule configuration too deep or too wide to store and send with every request."""
    level: list[object] = [config]
    nodes = 0
    for _ in range(RULE_DEPTH):
        level = [child for node in level for child in _children(node)]
        nodes += len(level)
        if nodes > RULE_NODES:
            break
    if level:
        raise refuse(
            "too_large",
            f"it is nested deeper than {RULE_DEPTH} levels or has more than {RULE_NODES} entries; make it smaller",
            f"嵌套超过 {RULE_DEPTH} 层或条目超过 {RULE_NODES} 个，请精简",
        )


def _children(node: object) -> list[object]:
    if isinstance(node, dict):
        return [*node.values()]
    return [*node] if isinstance(node, (list, tuple)) else []


def _storable(config: object) -> object:
    """Refuse a rule configuration that JSON, the database or a log could not hold."""
    if not isinstance(config, dict):
        return config
    _bounded(config)
    try:
        size = len(json.dumps(config, ensure_ascii=False, allow_nan=False).encode())
    except (ValueError, TypeError):
        raise refuse(
            "not_finite",
            "it holds a number that is not finite, is too long, or a broken character; replace it",
            "其中含有非有限数、过长的数或损坏的字符，请替换",
        ) from None
    if size > RULE_BYTES:
        raise refuse(
            "too_large",
            f"it takes {size} bytes and at most {RULE_BYTES} are stored; make it smaller",
            f"大小为 {size} 字节，最多 {RULE_BYTES} 字节，请精简",
        )
    for leaf in _leaves(config):
        if isinstance(leaf, str):
            printable(leaf)
        elif isinstance(leaf, int) and abs(leaf) > LARGEST_EXACT:
            raise refuse(
                "out_of_range",
                "it holds a whole number that other programs would round; write it as a text",
                "其中含有其他程序会舍入的过大整数，请改写为文本",
            )
    return config


def _leaves(config: object) -> Iterator[object]:
    nodes: list[object] = [config]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            nodes.extend(node)
            nodes.extend(node.values())
        elif isinstance(node, (list, tuple)):
            nodes.extend(node)
        else:
            yield node


RuleConfig = Annotated[
    dict[str, JsonValue],
    Field(max_length=200),
    BeforeValidator(_storable),
]


class RuleParameters(Parameters):
    """A rule that scores a completion without any model."""

    reward_fn_type: Annotated[
        RuleName | None,
        hint(
            "reward",
            "A rule as reward: math_verify compares answers, format_check the form, rule_based your rules, self_play the candidates with each other.",
            "规则奖励：math_verify 比对答案，format_check 检查格式，rule_based 自定义规则，self_play 候选互评。",
        ),
    ] = None
    reward_fn_extract_answer: Annotated[
        Literal["boxed", "last_number", "json"],
        hint("reward", "Where the answer stands in a completion.", "如何从回答中提取答案。"),
    ] = "boxed"
    reward_fn_compare_method: Annotated[
        Literal["exact", "numeric", "fuzzy"],
        hint(
            "reward",
            "How answers are compared: same text, same value, or same mathematical meaning.",
            "答案比对方式：文本相同、数值相等，或数学含义相同。",
        ),
    ] = "numeric"
    reward_fn_answer_key: Annotated[
        Label,
        hint("reward", "Dataset column with the reference answer.", "数据集中参考答案所在的列。"),
    ] = "solution"
    reward_fn_config: Annotated[
        RuleConfig,
        hint(
            "reward", "The rest of the rule, such as json_key.", "规则的其他设置，例如 json_key。"
        ),
    ] = Field(default_factory=dict)


class ModelRewardParameters(Parameters):
    """A judge behind an API, or a local reward model."""

    reward_provider: Annotated[
        Label | None,
        hint(
            "reward",
            "A judge that an administrator configured, by name.",
            "管理员已配置的评判服务名称。",
        ),
    ] = None
    reward_model_type: Annotated[
        Literal["api", "model"] | None,
        hint(
            "reward",
            "This job's own judge: api (OpenAI-compatible) or model (a local reward model).",
            "本任务专用的评判：api（OpenAI 兼容接口）或 model（本地奖励模型）。",
        ),
    ] = None
    reward_model_api_base: Annotated[
        ApiBase,
        hint(
            "reward", "Address of the judge; default DashScope.", "评判服务地址；默认 DashScope。"
        ),
    ] = DASHSCOPE
    reward_model_api_key: Annotated[
        SecretLine | None,
        hint("reward", "Key of the judge. Write-only.", "评判服务的密钥。只写，不会显示。"),
    ] = None
    reward_model_api_model: Annotated[
        Label, hint("reward", "Model that judges.", "用作评判的模型。")
    ] = "qwen-plus"
    reward_model_path: Annotated[
        ModelPath | None,
        hint(
            "reward",
            "The local reward model, such as job:<uuid>@best of a reward_model job.",
            "本地奖励模型，例如 reward_model 任务的 job:<uuid>@best。",
        ),
    ] = None


class RewardComponent(RuleParameters, ModelRewardParameters):
    """One of several rewards that are combined."""

    name: Annotated[
        ComponentName,
        hint(
            "reward",
            "Name of the component in metrics and samples.",
            "该分量在指标和样本中的名称。",
        ),
    ]
    weight: Annotated[
        float,
        Field(ge=-1000, le=1000),
        hint("reward", "Factor in the sum; negative for a penalty.", "求和权重；负数表示惩罚。"),
    ] = 1.0
    required: Annotated[
        bool,
        hint(
            "reward",
            "No verdict here means no reward for the completion.",
            "该分量没有结果时，整个回答不计奖励。",
        ),
    ] = False


def _unique(components: tuple[RewardComponent, ...]) -> tuple[RewardComponent, ...]:
    names = [component.name for component in components]
    if len(set(names)) != len(names):
        raise refuse(
            "duplicate",
            "two components have the same name; rename one",
            "有两个分量重名，请修改其一",
        )
    return components


Components = Annotated[
    tuple[RewardComponent, ...],
    Field(min_length=1, max_length=8),
    BeforeValidator(as_tuple),
    AfterValidator(_unique),
]


class RewardParameters(RuleParameters, ModelRewardParameters):
    """What a completion is worth."""

    rewards: Annotated[
        Components | None,
        hint(
            "reward",
            "Several rewards combined: [{name, weight, required, and the parameters of one reward}].",
            "组合多个奖励：[{name, weight, required, 以及一种奖励的参数}]。",
        ),
    ] = None
    max_reward_cost: Annotated[
        Annotated[float, Field(gt=0, le=1e9)] | None,
        hint(
            "reward",
            "The most that paid judges may cost this job.",
            "本任务付费评判的费用上限。",
            "cost",
        ),
    ] = None
