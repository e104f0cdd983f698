"""From the bytes of `train.log` to numbered lines with a level; what a terminal would have overwritten is folded away."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LINE_LIMIT = 16 * 1024
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LEVEL = re.compile(r"\[(DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL)\] ?")
_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_ALIAS = {"WARN": "WARNING", "CRITICAL": "ERROR"}


@dataclass(frozen=True, slots=True)
class LineState:
    """What the next line's level depends on."""

    level: str = "INFO"
    """Of the line before."""
    trace: str = ""
    """`in` a traceback, `after` one (or after an error line), or neither."""
    mid: bool = False
    """The line before was cut at the limit; this is its rest."""

    @staticmethod
    def parse(text: str) -> LineState:
        """Read back what `dump` wrote."""
        if not text:
            return LineState()
        level, trace, mid = json.loads(text)
        return LineState(level, trace, mid)

    def dump(self) -> str:
        """Return a short text form; the first state is empty."""
        return "" if self == LineState() else json.dumps([self.level, self.trace, self.mid])


def decode(
    data: bytes, state: str, final: bool
) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    """Decoder of `train.log` (see `numbering.Decoder`): items are {"level", "message"}."""
    now = LineState.parse(state)
    start = 0
    while start < len(data):
        end, raw, mid = _cut(data, start, final)
        if end == start:
            return
        start = end
        if raw is None or (now.mid and not raw and not mid):
            now = LineState(now.level, now.trace, mid and now.mid)
            yield end, None, now.dump()
            continue
        item, now = _line(raw, now, mid)
        yield end, item, now.dump()


def _cut(data: bytes, start: int, final: bool) -> tuple[int, bytes | None, bool]:
    """Return (end, the line or None for a progress bar that was overwritten, whether the line goes on)."""
    window = data[start : start + LINE_LIMIT]
    newline = window.find(b"\n")
    if newline >= 0:
        return start + newline + 1, _last_state(window[:newline]), False
    if len(window) < LINE_LIMIT:
        if final:
            return len(data), _last_state(window), False
        return start, None, False
    overwritten = window.rfind(b"\r", 0, LINE_LIMIT - 1)
    if overwritten >= 0:
        return start + overwritten + 1, None, True
    keep = _whole_characters(window)
    return start + keep, window[:keep], True


def _last_state(line: bytes) -> bytes:
    line = line.rstrip(b"\r")
    return line[line.rfind(b"\r") + 1 :]


def _whole_characters(window: bytes) -> int:
    """Return how many bytes of `window` hold no cut UTF-8 character."""
    for back in range(1, 4):
        byte = window[-back]
        if byte & 0xC0 == 0xC0:
            return len(window) - back
        if byte & 0x80 == 0:
            break
    return len(window)


def _line(raw: bytes, before: LineState, mid: bool) -> tuple[dict[str, Any], LineState]:
    text = clean(raw)
    if before.mid:
        level, trace = before.level, before.trace
    else:
        level, trace, text = _judge(text, before)
    return {"level": level, "message": text}, LineState(level, trace, mid)


def _judge(text: str, before: LineState) -> tuple[str, str, str]:
    match = _LEVEL.match(text)
    if match:
        level = _ALIAS.get(match[1], match[1])
        text = text[match.end() :]
        if text.startswith(_TRACEBACK):
            return "ERROR", "in", text
        return level, "after" if level == "ERROR" else "", text
    if text.startswith(_TRACEBACK):
        return "ERROR", "in", text
    if before.trace == "in":
        goes_on = not text.strip() or text[0].isspace()
        return "ERROR", "in" if goes_on else "after", text
    if before.trace == "after" and (
        not text.strip() or text[0].isspace() or text.startswith(_CHAINED)
    ):
        return "ERROR", "after", text
    return "INFO", "", text


def clean(raw: bytes) -> str:
    """Return the text without terminal sequences and control characters; bytes that are no UTF-8 are replaced."""
    return _CONTROL.sub("", _ANSI.sub("", raw.decode(errors="replace")))
