"""Pydantic's findings about a query or a small body, as sentences in both languages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shared.errors import FieldProblem
from shared.specs.problems import shown

Texts = tuple[str, str, str]
"""Code, English, Chinese; `{…}` is filled from pydantic's context."""

_TEXTS: dict[str, Texts] = {
    "missing": ("required", "is missing; give it", "缺失，请提供"),
    "extra_forbidden": (
        "unknown_field",
        "is not known here; remove it or check its spelling",
        "不是已知字段，请删除或检查拼写",
    ),
    "int_parsing": ("wrong_type", "must be a whole number", "应为整数"),
    "int_type": ("wrong_type", "must be a whole number", "应为整数"),
    "float_parsing": ("wrong_type", "must be a number", "应为数字"),
    "string_type": ("wrong_type", "must be a text", "应为文本"),
    "bool_type": ("wrong_type", "must be true or false", "应为 true 或 false"),
    "bool_parsing": ("wrong_type", "must be true or false", "应为 true 或 false"),
    "list_type": ("wrong_type", "must be a list", "应为列表"),
    "tuple_type": ("wrong_type", "must be a list", "应为列表"),
    "model_attributes_type": ("wrong_type", "must be a JSON object", "应为 JSON 对象"),
    "dict_type": ("wrong_type", "must be a JSON object", "应为 JSON 对象"),
    "greater_than_equal": ("out_of_range", "must be {ge} or more", "应不小于 {ge}"),
    "less_than_equal": ("out_of_range", "must be {le} or less", "应不大于 {le}"),
    "string_too_long": (
        "too_long",
        "must be at most {max_length} characters",
        "最多 {max_length} 个字符",
    ),
    "string_too_short": (
        "too_short",
        "must be at least {min_length} characters",
        "至少 {min_length} 个字符",
    ),
    "too_long": ("too_long", "must have at most {max_length} entries", "最多 {max_length} 项"),
    "enum": ("not_allowed", "must be {expected}", "应为 {expected}"),
    "literal_error": ("not_allowed", "must be {expected}", "应为 {expected}"),
    "json_invalid": ("json_invalid", "is not valid JSON", "不是合法的 JSON"),
}


def field_problems(errors: Sequence[Any], *, masked: bool = False) -> list[FieldProblem]:
    """Return one sentence for each of pydantic's errors; values that may be secret, or all (`masked`), are left out."""
    return [_problem(error, masked) for error in errors[:100]] or [
        FieldProblem("body", None, "The input is not valid.", "输入无效。")
    ]


def _problem(error: Any, masked: bool) -> FieldProblem:
    where = [str(p) for p in error.get("loc", ()) if p not in {"body", "query", "path", "header"}]
    field = ".".join(where) or "body"
    context = dict(error.get("ctx") or {})
    own = context.get("zh")
    if own is not None:
        code = str(context.get("code", "invalid"))
        en, zh = f"is not valid: {context['en']}", f"无效：{own}"
    else:
        code, en, zh = _TEXTS.get(
            str(error.get("type")), ("invalid", "is not valid; see /docs", "无效，请参见 /docs")
        )
        en, zh = _filled(en, context), _filled(zh, context)
    value = None if masked or code == "required" else _safe(field, error.get("input"))
    return FieldProblem(field, value, f"{field} {en}.", f"{field} {zh}。", _allowed(context), code)


def _filled(text: str, context: dict[str, Any]) -> str:
    for name, value in context.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def _allowed(context: dict[str, Any]) -> str | None:
    if "expected" in context:
        return str(context["expected"])
    low, high = context.get("ge"), context.get("le")
    if low is None and high is None:
        return None
    return f">= {low}" if high is None else f"<= {high}"


def _safe(field: str, value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return shown(field, value)
