"""JSON as a machine reads it once and for all: no doubled key, nothing infinite, no endless nesting, no broken text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from shared.errors import FieldProblem, TrainyardError, invalid

DEPTH_LIMIT = 64
_DIGITS_LIMIT = 400
_LARGEST = 2**63 - 1
_EXACT = 2**53


def _bad(code: str, en: str, zh: str) -> TrainyardError:
    return TrainyardError(code, 400, "Unreadable JSON", "无法读取的 JSON", en, zh)


class _Suspicious:
    """What the parser met that needs a second look, with the name of its field."""

    def __init__(self) -> None:
        self.found = False

    def constant(self, text: str) -> float:
        self.found = True
        return float(text.replace("Infinity", "inf"))

    def decimal(self, text: str) -> float | int:
        value = float(text)
        self.found = self.found or not math.isfinite(value)
        # As JSON Schema and every browser have it, 5.0 is the whole number 5.
        return int(value) if value.is_integer() and abs(value) <= _EXACT else value

    def whole(self, text: str) -> int | float:
        if len(text) > _DIGITS_LIMIT:
            self.found = True
            return -_LARGEST * 4 if text.startswith("-") else _LARGEST * 4
        value = int(text)
        self.found = self.found or abs(value) > _LARGEST
        return value


def parse(data: bytes) -> Any:
    """Return the document.

    Raises TrainyardError: 400 `invalid_encoding`, `json_invalid` (with line and column), `json_too_deep`,
    `duplicate_key`; 422 `not_finite`, `out_of_range`, `invalid_characters` naming the field.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _bad(
            "invalid_encoding",
            f"The body is not UTF-8 (byte {error.start}). Send UTF-8.",
            f"请求体不是 UTF-8 编码（第 {error.start} 字节），请使用 UTF-8。",
        ) from None
    if _depth(text) > DEPTH_LIMIT:
        raise _bad(
            "json_too_deep",
            f"The JSON is nested deeper than {DEPTH_LIMIT} levels. Send a flat object.",
            f"JSON 嵌套超过 {DEPTH_LIMIT} 层，请使用更扁平的对象。",
        )
    seen = _Suspicious()
    try:
        document = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=seen.constant,
            parse_float=seen.decimal,
            parse_int=seen.whole,
        )
    except json.JSONDecodeError as error:
        raise _bad(
            "json_invalid",
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.",
            f"请求体不是合法的 JSON：第 {error.lineno} 行第 {error.colno} 列（{error.msg}）。",
        ) from None
    if seen.found or "\\u" in text or "\x00" in text:
        problems = [p for path, value in _leaves(document, "") for p in _look(path, value)]
        if problems:
            raise invalid(problems[:100])
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        clean = twice[:80].encode("ascii", "backslashreplace").decode()
        raise _bad(
            "duplicate_key",
            f"The key {clean!r} occurs twice in one object. Keep one.",
            f"键 {clean!r} 在同一对象中出现了两次，请只保留一个。",
        )
    return made


def _depth(text: str) -> int:
    """Return the deepest nesting of brackets outside strings, without recursion."""
    deepest = depth = 0
    inside = escaped = False
    if text.count("[") + text.count("{") <= DEPTH_LIMIT:
        return 0
    for char in text:
        if inside:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                inside = False
        elif char == '"':
            inside = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield path, name
            yield from _leaves(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{index}" if path else str(index))
    else:
        yield path, value


def _look(path: str, value: Any) -> list[FieldProblem]:
    path = path or "body"
    field = path.encode("ascii", "backslashreplace").decode() if not path.isprintable() else path
    if isinstance(value, str):
        return _text(field, value)
    if isinstance(value, float) and not math.isfinite(value):
        name = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return [
            FieldProblem(
                field,
                name,
                f"{field} is {name}; give a finite number.",
                f"{field} 的值为 {name}，应为有限的数值。",
                "a finite number",
                "not_finite",
            )
        ]
    if isinstance(value, int) and abs(value) > _LARGEST:
        return [
            FieldProblem(
                field,
                None,
                f"{field} is a number of more than 18 digits; give one that fits 64 bits.",
                f"{field} 的数值超过 18 位，应在 64 位整数范围内。",
                f"<= {_LARGEST}",
                "out_of_range",
            )
        ]
    return []


def _text(field: str, value: str) -> list[FieldProblem]:
    if any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise _bad(
            "invalid_encoding",
            f"{field} holds half of a surrogate pair. Send whole characters.",
            f"{field} 含有不完整的代理对字符，请发送完整字符。",
        )
    if "\x00" in value:
        return [
            FieldProblem(
                field,
                None,
                f"{field} holds a NUL character; remove it.",
                f"{field} 含有 NUL 字符，请删除。",
                None,
                "invalid_characters",
            )
        ]
    return []
