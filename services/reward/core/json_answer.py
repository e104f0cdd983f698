"""The answer in the last JSON object of a text."""

from __future__ import annotations

import json
from typing import Any, Final

MAX_STARTS: Final = 200


class _Number(str):
    """A number as it was written; never goes through a float."""

    __slots__ = ()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(
    parse_int=_Number, parse_float=_Number, parse_constant=_no_constant
)


def last_object(text: str) -> dict[str, Any] | None:
    """Return the last top-level object that parses strictly, its numbers as text; None where there is none.

    At most 200 opening braces are tried, from the last backwards; an object within another one is not top-level.
    """
    found = _last(text)
    return None if found is None else found[2]


def last_object_text(text: str) -> str | None:
    """Return the text of what `last_object` finds."""
    found = _last(text)
    return None if found is None else text[found[0] : found[1]]


def _last(text: str) -> tuple[int, int, dict[str, Any]] | None:
    starts = _starts(text)
    found: tuple[int, int, dict[str, Any]] | None = None
    for start in starts:
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if not isinstance(value, dict):
            continue
        if found is None or end >= found[1]:  # the first from behind, or one that holds it
            found = (start, end, value)
    return found


def _starts(text: str) -> list[int]:
    starts: list[int] = []
    end = len(text)
    while len(starts) < MAX_STARTS:
        end = text.rfind("{", 0, end)
        if end < 0:
            break
        starts.append(end)
    return starts


def json_answer(text: str, key: str) -> str | None:
    """Return the string or number under `key` of the last object; true, false, null and arrays are no answer."""
    value = (last_object(text) or {}).get(key)
    if not isinstance(value, str) or not value.strip():
        return None
    return str(value).strip()
