"""One JSON object from bytes, strictly: UTF-8, no duplicate keys, finite numbers, bounded depth."""

import json
import math
import re

from shared.preflight.finding import Finding, Place, shown
from shared.preflight.sources import FIELD

# A string, closed or running to the end, or one bracket; possessive, so that hostile text stays linear.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_EXCERPT = 24


class _Refused(Exception):  # never leaves this module
    def __init__(self, code: str, value: str) -> None:
        super().__init__(code)
        self.code, self.value = code, value


def parse_object(raw: bytes, place: Place, depth: int) -> dict[str, object] | Finding:
    """The object that `raw` holds, or what is wrong with it; `place.line` is the line where `raw` begins."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return invalid_utf8(place, raw, error.start)
    if too_deep(text, depth):
        return _deep(place, depth)
    try:
        value: object = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except _Refused as refused:
        return _refused(refused, place)
    except json.JSONDecodeError as error:
        return syntax_error(place, text, error)
    except RecursionError:
        return _deep(place, depth)
    if not isinstance(value, dict):
        return _not_object(place, value)
    if _SURROGATE.search(text) and not _encodable(value):
        return Finding(
            "invalid_utf8",
            FIELD,
            f"{place.en} holds half of a surrogate pair (\\ud800-\\udfff). Write the character itself in UTF-8.",
            f"{place.zh}含有不成对的代理字符（\\ud800-\\udfff）。请直接用 UTF-8 写出该字符。",
            place.line,
            place.row,
            value="\\ud800-\\udfff",
        )
    return value


def too_deep(text: str, depth: int) -> bool:
    """Whether brackets outside strings nest deeper than `depth`."""
    if text.count("[") + text.count("{") <= depth:
        return False
    level = 0
    for token in _TOKEN.finditer(text):
        mark = text[token.start()]
        if mark in "[{":
            level += 1
            if level > depth:
                return True
        elif mark in "]}":
            level -= 1
    return False


def syntax_error(place: Place, text: str, error: json.JSONDecodeError) -> Finding:
    """The finding for JSON that does not parse: line, column, what stands there."""
    line = (place.line or 1) + error.lineno - 1
    here = Place(line, place.row)
    around = shown(text[max(0, error.pos - _EXCERPT) : error.pos + _EXCERPT], 2 * _EXCERPT)
    reason = shown(error.msg)
    return Finding(
        "json_error",
        FIELD,
        f"{here.en}, column {error.colno}: not valid JSON ({reason}) near: {around}. Mend it or drop the row.",
        f"{here.zh}第 {error.colno} 列：不是合法的 JSON（{reason}），附近内容：{around}。请修正或删除该条。",
        line,
        place.row,
        value=around,
    )


def invalid_utf8(place: Place, raw: bytes, start: int) -> Finding:
    """The finding for bytes that are not UTF-8."""
    line = place.line + raw.count(b"\n", 0, start) if place.line is not None else None
    here, byte = Place(line, place.row), f"0x{raw[start]:02x}"
    return Finding(
        "invalid_utf8",
        FIELD,
        f"{here.en} is not valid UTF-8 (byte {byte} at position {start + 1}). Save the file as UTF-8.",
        f"{here.zh}不是合法的 UTF-8（位置 {start + 1} 的字节 {byte}）。请把文件另存为 UTF-8。",
        line,
        place.row,
        value=byte,
        allowed="UTF-8",
    )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused("duplicate_key", shown(key))
            seen.add(key)
    return made


def _no_constant(name: str) -> object:
    raise _Refused("not_finite", name)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused("not_finite", shown(text))
    return value


def _whole(text: str) -> int:
    if len(text) > 400:
        raise _Refused("number_too_large", shown(text, 20))
    return int(text)


def _refused(refused: _Refused, place: Place) -> Finding:
    value = refused.value
    match refused.code:
        case "duplicate_key":
            en, zh = (
                f'the key "{value}" stands twice in one object. Keep one.',
                f"同一个对象里键“{value}”出现了两次，请只保留一个。",
            )
        case "not_finite":
            en, zh = (
                f"{value} is not a finite number. Use null or leave the row out.",
                f"{value} 不是有限数值。请改为 null 或删除该条。",
            )
        case _:
            en, zh = (
                f"the number {value} is too large. Write it as text.",
                f"数字 {value} 过大。请写成文本。",
            )
    return Finding(
        refused.code,
        FIELD,
        f"{place.en}: {en}",
        f"{place.zh}：{zh}",
        place.line,
        place.row,
        value=value,
    )


def _deep(place: Place, depth: int) -> Finding:
    return Finding(
        "too_deep",
        FIELD,
        f"{place.en} nests objects or lists deeper than {depth}. Flatten the row.",
        f"{place.zh}的对象或列表嵌套超过 {depth} 层。请简化结构。",
        place.line,
        place.row,
        allowed=f"<= {depth}",
    )


def _not_object(place: Place, value: object) -> Finding:
    kind = type(value).__name__
    array_en = (
        " A .jsonl file holds one object a line; name a file with one array .json."
        if kind == "list"
        else ""
    )
    array_zh = (
        "　.jsonl 每行一个对象；整个文件是数组时请使用 .json 扩展名。" if kind == "list" else ""
    )
    return Finding(
        "row_not_object",
        FIELD,
        f'{place.en} is a {kind}, not an object such as {{"prompt": "…"}}.{array_en}',
        f'{place.zh}是 {kind}，应为对象，例如 {{"prompt": "…"}}。{array_zh}',
        place.line,
        place.row,
        value=shown(value),
        allowed="object",
    )


def _encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
