"""Turn what pydantic reports into sentences: no word of its own vocabulary reaches a user."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from shared.specs.parameters import Parameter, described
from shared.specs.problems import FieldError, names_a_secret, plain, quoted, shown
from shared.specs.rewards import RewardComponent
from shared.specs.text import REFUSED
from shared.specs.wording import needed, refusal, told, way_out

_OUT_OF_RANGE: Final = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
_LENGTHS: Final = {"string_too_short", "string_too_long", "too_short", "too_long"}
_ENCODINGS: Final = {"string_unicode", "string_surrogate"}
_LARGEST_FLOAT: Final = 2**1023

# what trl, transformers, verl and the OpenAI API call the same thing
_ELSEWHERE: Final = {
    "lr": "learning_rate",
    "epochs": "num_epochs",
    "n_epochs": "num_epochs",
    "num_train_epochs": "num_epochs",
    "per_device_train_batch_size": "batch_size",
    "model": "model_path",
    "model_name": "model_path",
    "model_name_or_path": "model_path",
    "base_model": "model_path",
    "dataset": "train_data_path",
    "data": "train_data_path",
    "training_file": "train_data_path",
    "validation_file": "eval_data_path",
    "eval_dataset": "eval_data_path",
    "max_length": "context_length",
    "max_seq_length": "context_length",
    "gpus": "num_gpus",
    "gpu": "num_gpus",
    "n_gpus": "num_gpus",
    "nodes": "num_nodes",
    "lora": "lora_enabled",
    "use_lora": "lora_enabled",
    "use_peft": "lora_enabled",
    "lora_r": "lora_rank",
    "num_generations": "rollout_n",
    "group_size": "rollout_n",
    "epsilon": "clip_ratio",
    "cliprange": "clip_ratio",
    "type": "algorithm",
    "method": "algorithm",
    "bf16": "precision",
    "fp16": "precision",
    "scheduler": "lr_scheduler_type",
    "optimizer": "optim",
}

Location = tuple[int | str, ...]


def field_errors(model: type[BaseModel], problem: ValidationError) -> list[FieldError]:
    """Return one error for each mistake pydantic found in a body of this model."""
    found = problem.errors(include_url=False)
    # pydantic counts only the entries that are right, and then says of a list with a wrong one that it is too short
    above = {e["loc"][:n] for e in found for n in range(len(e["loc"]))}
    found = [e for e in found if e["type"] != "too_short" or e["loc"] not in above]
    return [_field_error(model, e["loc"], e["type"], e["input"], e.get("ctx", {})) for e in found]


def _field_error(
    model: type[BaseModel], location: Location, kind: str, value: object, context: dict[str, Any]
) -> FieldError:
    field = path(location)
    if kind == REFUSED:
        return _refused(field, value, context)
    if kind == "extra_forbidden":
        return unknown_field(field, str(location[-1]), value, list(described(RewardComponent)))
    parameter = _parameter(model, location)
    if kind == "missing":
        return _missing(field, parameter)
    if kind in _ENCODINGS:
        return _broken_text(field, value)
    if kind in _LENGTHS:
        return _length(field, value, context, parameter)
    if parameter is None:
        return _entry(field, value)
    return _near_choice(
        refusal(field, value, _code(kind, value), parameter), field, value, parameter
    )


def path(location: Location) -> str:
    """Return a place in a body as users write it: `rewards.0.weight`."""
    return ".".join(
        str(shown("", part)) if isinstance(part, str) else str(part)
        for part in location
        if part != "[key]"
    )


def _parameter(model: type[BaseModel], location: Location) -> Parameter | None:
    top = str(location[0])
    if len(location) == 1:
        return described(model)[top]
    if top == "rewards" and len(location) == 3:
        return described(RewardComponent)[str(location[2])]
    return None


def _code(kind: str, value: object) -> str:
    if kind in _OUT_OF_RANGE:
        return "out_of_range"
    if kind == "literal_error":
        return "not_allowed"
    if isinstance(value, float) and not math.isfinite(value):
        return "not_finite"
    if type(value) is int and abs(value) >= _LARGEST_FLOAT:
        return "out_of_range"
    return "wrong_type"


def _refused(field: str, value: object, context: dict[str, Any]) -> FieldError:
    return FieldError(
        field=field,
        value=shown(field, value),
        code=context["code"],
        message_en=f"{field} is {quoted(field, value)}: {context['en']}.",
        message_zh=f"{field} 的值为 {quoted(field, value)}：{context['zh']}。",
        allowed=context["allowed"],
    )


def unknown_field(field: str, name: str, value: object, known: list[str]) -> FieldError:
    """Return the error for a name nobody knows, with the nearest known one."""
    near = nearest(name, known)
    hidden = names_a_secret(name) or any(names_a_secret(n) for n in near)
    if near:
        en = f"Did you mean {near[0]}?"
        zh = f"是否应为 {near[0]}？"
    else:
        en = "Remove it; docs/reference/parameters.md lists the parameters."
        zh = "请删除；参数列表见 docs/zh-CN/parameters.md。"
    return FieldError(
        field=field,
        value="***" if hidden else shown(field, value),
        code="unknown_field",
        message_en=f"{field} is not a known parameter. {en}",
        message_zh=f"{field} 不是已知参数。{zh}",
        allowed=near or None,
    )


def nearest(name: str, known: list[str]) -> list[str]:
    """Return the known name a user probably meant, if there is one: what other tools call it, or how it is spelt."""
    usual = _ELSEWHERE.get(name[:64].lower().replace("-", "_"))
    return [usual] if usual in known else get_close_matches(name[:64], known, n=1, cutoff=0.6)


def _missing(field: str, parameter: Parameter | None) -> FieldError:
    en = needed(parameter, "en") if parameter else "a value"
    zh = needed(parameter, "zh") if parameter else "一个值"
    hint_en = f" {parameter.hint['en']}" if parameter else ""
    hint_zh = parameter.hint["zh"] if parameter else ""
    return told(
        field,
        None,
        "required",
        f"{field} is missing; give {en}.{hint_en}",
        f"缺少 {field}，请提供{zh}。{hint_zh}",
    )


def _broken_text(field: str, value: object) -> FieldError:
    return told(
        field,
        value,
        "invalid_encoding",
        f"{field} holds half of a character (a lone surrogate); send the text as UTF-8.",
        f"{field} 含有不完整的字符（孤立代理项），请以 UTF-8 发送。",
    )


def _length(
    field: str, value: object, context: dict[str, Any], parameter: Parameter | None
) -> FieldError:
    size = (
        len(value)
        if isinstance(value, (str, list, tuple, dict))
        else context.get("actual_length", 0)
    )
    most, least = context.get("max_length"), context.get("min_length")
    text = isinstance(value, str)
    what_en, what_zh = ("characters", "个字符") if text else ("entries", "项")
    if most is not None:
        limit_en, limit_zh = f"at most {most}", f"最多 {most}"
        do_en, do_zh = "Shorten it.", "请缩短。"
    else:
        limit_en, limit_zh = f"at least {least}", f"至少 {least}"
        do_en, do_zh = "Fill it in or leave it out.", "请填写或省略。"
        if parameter is not None:
            do_en, do_zh = (
                "Fill it in. " + way_out(parameter, "en"),
                "请填写。" + way_out(parameter, "zh"),
            )
    return FieldError(
        field=field,
        value=shown(field, value),
        code="too_long" if most is not None else "too_short",
        message_en=f"{field} has {size} {what_en}; it must have {limit_en}. {do_en}",
        message_zh=f"{field} 有 {size} {what_zh}，应为{limit_zh}{what_zh}。{do_zh}",
        allowed=parameter.allowed() if parameter else f"{limit_en} {what_en}",
    )


def _entry(field: str, value: object) -> FieldError:
    if field.startswith("rewards."):
        takes_en = 'an object such as {"name": "math", "reward_fn_type": "math_verify"}'
        takes_zh = '对象，例如 {"name": "math", "reward_fn_type": "math_verify"}'
    elif field.startswith("reward_fn_config"):
        takes_en, takes_zh = "a JSON value", "JSON 值"
    else:
        takes_en, takes_zh = "a text", "文本"
    return told(
        field,
        value,
        "wrong_type",
        f"{field} is {quoted(field, value)}; it must be {takes_en}. Correct or remove this entry.",
        f"{field} 的值为 {quoted(field, value)}，应为{takes_zh}。请改正或删除这一项。",
    )


def _near_choice(error: FieldError, field: str, value: object, parameter: Parameter) -> FieldError:
    if not isinstance(value, str) or not parameter.choices:
        return error
    near = get_close_matches(value[:64].lower(), parameter.choices, n=1, cutoff=0.6)
    if not near:
        return error
    return FieldError(
        field=field,
        value=error.value,
        code=error.code,
        message_en=f"{error.message_en} Did you mean {plain(near[0])}?",
        message_zh=f"{error.message_zh}是否应为 {plain(near[0])}？",
        allowed=error.allowed,
    )
