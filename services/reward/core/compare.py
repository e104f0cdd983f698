"""Exact, numeric and fuzzy comparison of two answers; what needs computer algebra is said, not done, here."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

from services.reward.core.collections import parse_collection, same_collection
from services.reward.core.guard import too_complex
from services.reward.core.latex import canonical, prepared
from services.reward.core.number import NotANumber, Number, TooComplex, parse_number, same
from services.reward.core.units import measured


class Outcome(Enum):
    """What a comparison found."""

    EQUAL = "equal"
    DIFFERENT = "different"
    GOLD_UNPARSEABLE = "gold_unparseable"
    TOO_COMPLEX = "prediction_too_complex"
    SYMBOLIC = "symbolic"
    """Undecided: only computer algebra can tell."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|a-b| <= max(atol, rtol*|gold|) where a decimal or an irrational number is involved."""

    rtol: float = 1e-6
    atol: float = 0.0


_PLAIN: Final = re.compile(r"-?[0-9]{1,18}")
_COMMAND: Final = re.compile(r"\\[A-Za-z]+")
_WORD: Final = re.compile(r"[A-Za-z]{2,}")
_LONG_WORD: Final = re.compile(r"[A-Za-z]{3,}")
_CJK: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_OPERATOR: Final = re.compile(r"[0-9+\-*/^=<>{}()\[\]]")
_FUNCTIONS: Final = frozenset({"sin", "cos", "tan", "log", "exp", "sqrt", "max", "min", "cot", "sec", "csc", "lim"})  # fmt: skip
_ARTICLES: Final = frozenset({"a", "an", "the"})
_TEXT_WRAP: Final = re.compile(r"\\(?:text|textrm|textbf|textit|mbox|mathrm)\s*\{([^{}]*)\}")
_INVISIBLE: Final = re.compile("[\x00-\x08\x0e-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")
_LETTER: Final = re.compile(r"[A-Za-z]")
_CHOICE: Final = re.compile(r"\(\s*([A-Za-z])\s*\)")
_MEMBER: Final = re.compile(r"^[A-Za-z]\s*\\in(?![A-Za-z])\s*")
_EMPTY_SET: Final = re.compile(r"\\(?:emptyset|varnothing)(?![A-Za-z])|∅|\\\{\s*\\\}")
_PUNCTUATION: Final = str.maketrans(
    dict.fromkeys(string.punctuation + "。，、；：？！“”‘’（）《》", " ")
)


def exact(gold: str, answer: str) -> Outcome:
    """Compare as text after normalisation: case-sensitive, blind to value."""
    return Outcome.EQUAL if canonical(gold) == canonical(answer) else Outcome.DIFFERENT


def numeric(gold: str, answer: str, tolerance: Tolerance = Tolerance()) -> Outcome:
    """Compare as closed-form numbers; a gold that is none cannot be judged, an answer that is none is wrong."""
    if _PLAIN.fullmatch(gold) and _PLAIN.fullmatch(answer):
        return Outcome.EQUAL if int(gold) == int(answer) else Outcome.DIFFERENT
    wanted = _number(gold)
    if not isinstance(wanted, Number):
        return Outcome.GOLD_UNPARSEABLE
    found = _number(answer)
    if isinstance(found, Number):
        equal = same(wanted, found, tolerance.rtol, tolerance.atol)
        return Outcome.EQUAL if equal else Outcome.DIFFERENT
    return Outcome.TOO_COMPLEX if found is TooComplex else Outcome.DIFFERENT


@lru_cache(maxsize=8192)
def _number(text: str) -> type[NotANumber | TooComplex] | Number:
    try:
        return parse_number(measured(prepared(text)).number)
    except NotANumber:
        return NotANumber
    except TooComplex:
        return TooComplex


def fuzzy(gold: str, answer: str, tolerance: Tolerance = Tolerance()) -> Outcome:
    """Compare by meaning: exact, or numeric, or as sets and text here; the rest is left to computer algebra."""
    wanted, found = _number(gold), _number(answer)
    units = measured(prepared(gold)).unit, measured(prepared(answer)).unit
    if all(units) and _unit(units[0]) != _unit(units[1]):
        return Outcome.DIFFERENT
    if exact(gold, answer) is Outcome.EQUAL:
        return Outcome.EQUAL
    if isinstance(wanted, Number) and isinstance(found, Number):
        equal = same(wanted, found, tolerance.rtol, tolerance.atol)
        return Outcome.EQUAL if equal else Outcome.DIFFERENT
    if found is TooComplex:
        return Outcome.TOO_COMPLEX
    if _INVISIBLE.search(answer):
        return Outcome.DIFFERENT
    return _by_meaning(_bare(gold), _bare(answer), tolerance)


def _by_meaning(gold: str, answer: str, tolerance: Tolerance) -> Outcome:
    if gold == answer:
        return Outcome.EQUAL
    if _LETTER.fullmatch(gold) and _LETTER.fullmatch(answer):
        return Outcome.EQUAL if gold.casefold() == answer.casefold() else Outcome.DIFFERENT
    if _is_text(gold) or _is_text(answer):
        return Outcome.EQUAL if _words(gold) == _words(answer) else Outcome.DIFFERENT
    wanted, found = parse_collection(gold), parse_collection(answer)
    if wanted is not None and found is not None:
        equal = same_collection(wanted, found, tolerance.rtol, tolerance.atol)
        return Outcome.EQUAL if equal else Outcome.DIFFERENT
    if too_complex(gold):
        return Outcome.GOLD_UNPARSEABLE
    return Outcome.TOO_COMPLEX if too_complex(answer) else Outcome.SYMBOLIC


def _bare(text: str) -> str:
    """Return a form in which notations of one meaning agree: `(B)` and B, `x \\in S` and S, both empty sets."""
    text = prepared(text)
    text = _MEMBER.sub("", text)
    text = _EMPTY_SET.sub(r"\\emptyset", text)
    choice = _CHOICE.fullmatch(_TEXT_WRAP.sub(r"\1", text).strip())
    return choice.group(1) if choice is not None else text.strip()


def _unit(text: str) -> str:
    return text.casefold().replace("{", "").replace("}", "")


def _is_text(text: str) -> bool:
    """Tell words from formulas: CJK, a wrapped text with letters, or a run of letters that is no product of variables."""
    if _CJK.search(text) or any(_WORD.search(w) for w in _TEXT_WRAP.findall(text)):
        return True
    plain = _COMMAND.sub(" ", text)
    if any(w.lower() not in _FUNCTIONS for w in _LONG_WORD.findall(plain)):
        return True
    return bool(_WORD.search(plain)) and not _OPERATOR.search(plain) and "\\" not in text


def _words(text: str) -> tuple[str, ...]:
    plain = canonical(text).casefold().translate(_PUNCTUATION)
    return tuple(word for word in plain.split() if word not in _ARTICLES)


def is_formula(text: str) -> bool:
    """Tell whether a text is a number or a formula and no words."""
    return isinstance(_number(text), Number) or not _is_text(_bare(text))
