"""Takes apart a number and what is written around it: `x =`, a currency sign, a unit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_ASSIGNED: Final = re.compile(
    r"^\s*(?:\\[A-Za-z]+|[A-Za-z])(?:_(?:\{[^{}]*\}|[A-Za-z0-9]))?(?:\([A-Za-z0-9]\))?\s*=\s*(?=\S)"
)
_CURRENCY: Final = re.compile(
    r"^([-+]?)\s*(?:\\?[$]|\\pounds|\\euro|[€£¥￥₹]|(?:USD|EUR|CNY|RMB)\s)\s*"
)
_DEGREE: Final = re.compile(r"(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree|°)\s*[CF]?\s*$")
_WRAP: Final = re.compile(
    r"\\(?:text|textrm|textit|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"
)
_POWER: Final = r"(?:\s*\^\s*(?:\{\s*-?[0-9]+\s*\}|-?[0-9]+))?"
_TRAILING: Final = re.compile(
    rf"(?<=[0-9)}}\]%])(?:\s|\\[,; !]|~)*((?:[A-Za-zµμΩ]+{_POWER}|[\u4e00-\u9fff]+)(?:[\s/.·*-]*(?:[A-Za-zµμΩ]+{_POWER}|[\u4e00-\u9fff]+))*)\s*[.。]?\s*$"
)
_ONE_LETTER: Final = frozenset(
    {"m", "s", "g", "h", "L", "l", "N", "J", "W", "V", "A", "K", "C", "F"}
)
_HEDGES: Final = frozenset(
    {"or", "and", "to", "not", "about", "approximately", "at", "least", "most", "more", "less", "than"}
)  # fmt: skip
_MATH_WORDS: Final = frozenset({"pi", "e", "i", "sqrt", "sin", "cos", "tan", "log", "ln", "exp", "x", "y", "z", "n"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """`number` is what is left to be parsed; `unit` is empty where none was written."""

    number: str
    unit: str


def measured(text: str) -> Measured:
    """Split a prepared text into its number and its unit (trailing words, currency, degrees)."""
    text = _ASSIGNED.sub("", text, count=1)
    unit = ""
    found = _CURRENCY.match(text)
    if found is not None:
        unit = "".join(text[found.end(1) : found.end()].replace("\\", "").split())
        text = found.group(1) + text[found.end() :]
    degree = _DEGREE.search(text)
    if degree is not None:
        return Measured(
            text[: degree.start()], unit + "°" + degree.group().strip()[-1:].strip("}°c")
        )
    wrapped = bool(_WRAP.search(text))
    plain = _WRAP.sub(lambda m: f" {m.group(1)} " if m.group(1) else "", text)
    trailing = _TRAILING.search(plain)
    if trailing is None or not _is_unit(trailing, wrapped=wrapped):
        return Measured(plain, unit)
    return Measured(plain[: trailing.start()], unit + "".join(trailing.group(1).split()))


def _is_unit(trailing: re.Match[str], *, wrapped: bool) -> bool:
    """Tell a unit from a variable or a hedge: `5x`, `5m` and `3 or 4` are no numbers with units, `5 m` and `5m/s` are."""
    words = trailing.group(1)
    letters = re.findall(r"[A-Za-zµμΩ]+", words)
    if any(w.lower() in _HEDGES for w in letters):
        return False
    if wrapped:
        return True
    if any(w in _MATH_WORDS for w in letters):
        return False
    glued = trailing.start() == trailing.start(1)
    if glued and len(letters) == 1 and len(letters[0]) == 1 and letters[0].isascii():
        return False
    return all(len(w) > 1 or w in _ONE_LETTER or not w.isascii() for w in letters)
