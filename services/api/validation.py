"""Pydantic's findings about a query or a small body, as sentences in both languages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import FieldProblem
from shared.specs.problems import plain, shown


@dataclass(frozen=True, slots=True)
class Text:
    """The sentence for one kind of pydantic's errors; `{…}` is filled from its context."""

    code: str
    en: str
    zh: str
    allowed: str | None = None


_WHOLE = Text("wrong_type", "must be a whole number", "应为整数", "a whole number")
_FLAG = Text("wrong_type", "must be true or false", "应为 true 或 false", "true, false")
_NUMBER = Text("wrong_type", "must be a number", "应为数字", "a number")
_OBJECT = Text("wrong_type", "must be a JSON object", "应为 JSON 对象", "an object")
_LIST = Text("wrong_type", "must be a list", "应为列表", "a list")
_EMPTY = Text("too_short", "is empty; give it a value", "为空，请填写", "1 character or more")

_TEXTS: dict[str, Text] = {
    "missing": Text("required", "is missing; give it", "缺失，请提供"),
    "extra_forbidden": Text(
        "unknown_field",
        "is not known here; remove it or check its spelling",
        "不是已知字段，请删除或检查拼写",
    ),
    "int_parsing": _WHOLE,
    "int_type": _WHOLE,
    "int_from_float": _WHOLE,
    "int_parsing_size": Text(
        "out_of_range", "has too many digits", "位数过多", "a number of 64 bits"
    ),
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "finite_number": Text(
        "not_finite", "must be a finite number", "应为有限的数值", "a finite number"
    ),
    "string_type": Text("wrong_type", "must be a text", "应为文本", "a text"),
    "bool_type": _FLAG,
    "bool_parsing": _FLAG,
    "list_type": _LIST,
    "tuple_type": _LIST,
    "model_attributes_type": _OBJECT,
    "dict_type": _OBJECT,
    "greater_than_equal": Text("out_of_range", "must be {ge} or more", "应不小于 {ge}", ">= {ge}"),
    "less_than_equal": Text("out_of_range", "must be {le} or less", "应不大于 {le}", "<= {le}"),
    "string_too_long": Text(
        "too_long",
        "must be at most {max_length} characters",
        "最多 {max_length} 个字符",
        "<= {max_length} characters",
    ),
    "string_too_short": Text(
        "too_short",
        "must be at least {min_length} characters",
        "至少 {min_length} 个字符",
        ">= {min_length} characters",
    ),
    "string_pattern_mismatch": Text(
        "not_allowed", "does not have the form {pattern}", "不符合格式 {pattern}", "{pattern}"
    ),
    "too_long": Text(
        "too_long",
        "must have at most {max_length} entries",
        "最多 {max_length} 项",
        "<= {max_length} entries",
    ),
    "enum": Text("not_allowed", "must be {expected}", "应为 {expected}", "{expected}"),
    "literal_error": Text("not_allowed", "must be {expected}", "应为 {expected}", "{expected}"),
    "json_invalid": Text("json_invalid", "is not valid JSON", "不是合法的 JSON", "JSON"),
}
_OTHER = Text("invalid", "is not valid; see /docs", "无效，请参见 /docs")


def field_problems(errors: Sequence[Any], *, masked: bool = False) -> list[FieldProblem]:
    """Return one sentence for each of pydantic's errors; values that may be secret, or all (`masked`), are left out."""
    return [_problem(error, masked) for error in errors[:100]] or [
        FieldProblem("body", None, "The input is not valid.", "输入无效。")
    ]


def _problem(error: Any, masked: bool) -> FieldProblem:
    where = [str(p) for p in error.get("loc", ()) if p not in {"body", "query", "path", "header"}]
    # The name of an unknown field is the sender's own text.
    field = plain(".".join(where)) or "body"
    context = dict(error.get("ctx") or {})
    if context.get("zh") is not None:
        text = Text(
            str(context.get("code", "invalid")),
            f"is not valid: {context['en']}",
            f"无效：{context['zh']}",
            context.get("allowed"),
        )
    else:
        kind = str(error.get("type"))
        empty = kind == "string_too_short" and context.get("min_length") == 1
        text = _EMPTY if empty else _TEXTS.get(kind, _OTHER)
    en, zh = _filled(text.en, context), _filled(text.zh, context)
    allowed = None if text.allowed is None else _filled(text.allowed, context)
    value = None if masked or text.code == "required" else _safe(field, error.get("input"))
    return FieldProblem(field, value, f"{field} {en}.", f"{field} {zh}。", allowed, text.code)


def _filled(text: str, context: dict[str, Any]) -> str:
    for name, value in context.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def _safe(field: str, value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return shown(field, value)
