"""What a check has to say: one problem, with its place and what to do, in English and Chinese."""

import re
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]

SHOWN_CHARS = 60
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem. `field` is the job parameter it belongs to; line and row count from 1."""

    code: str
    field: str | None
    message_en: str
    message_zh: str
    line: int | None = None
    row: int | None = None
    column: str | None = None
    value: str | None = None
    allowed: str | None = None
    severity: Severity = "error"

    def message(self, lang: str = "en") -> str:
        """The sentence in the asked language; anything that is not Chinese gets English."""
        return self.message_zh if lang.lower().startswith("zh") else self.message_en


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a file: the line, the row, or both."""

    line: int | None = None
    row: int | None = None

    @property
    def en(self) -> str:
        """The place in English, ready to begin a sentence."""
        if self.line is None:
            return "The file" if self.row is None else f"Row {self.row}"
        return f"Line {self.line}" if self.row is None else f"Row {self.row} (line {self.line})"

    @property
    def zh(self) -> str:
        """The place in Chinese."""
        if self.line is None:
            return "文件" if self.row is None else f"第 {self.row} 条"
        return (
            f"第 {self.line} 行" if self.row is None else f"第 {self.row} 条（第 {self.line} 行）"
        )


def shown(value: object, limit: int = SHOWN_CHARS) -> str:
    """A value for a message: at most `limit` characters, control and bidi characters escaped."""
    text = value if isinstance(value, str) else _plain(value)
    cut = text[:limit]
    clean = _CONTROL.sub(lambda m: m.group().encode("unicode_escape").decode("ascii"), cut)
    return clean + "…" if len(text) > limit else clean


def _plain(value: object) -> str:
    if isinstance(value, list):
        return f"list of {len(value)}"
    if isinstance(value, dict):
        return "object with " + ", ".join(shown(str(key), 20) for key in list(value)[:4])
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return "a very large number"
    return str(value)
