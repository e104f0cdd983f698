"""Brings the many ways to write one answer to one form, as text: no value is computed here."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_OUTER: Final = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_FRAC: Final = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_SIZED: Final = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?")
_SPACE_MACRO: Final = re.compile(r"\\[,;:!> ]|\\q?quad(?![A-Za-z])|~")
_WRAPPED: Final = re.compile(
    r"\\(?:text|textrm|textit|textbf|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}"
)
_SPACES: Final = re.compile(r"\s+")
SUPERSCRIPTS: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_RAISED: Final = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")


def without_delimiters(text: str) -> str:
    """Return `text` trimmed and without `$…$`, `\\(…\\)` or `\\[…\\]` around it."""
    text = text.strip()
    for opening, closing in _OUTER:
        longer = len(text) > len(opening) + len(closing)
        if longer and text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            if opening not in inner:
                return inner.strip()
    return text


def canonical(text: str) -> str:
    """Return the form by which `exact` compares (reference, section 4.1).

    NFKC, outer delimiters, `\\dfrac`, `\\left`, thin spaces and text wrappers are taken away, white space collapsed, one
    final full stop removed. Case and value stay: `0.5` is not `\\frac12`.
    """
    text = without_delimiters(unicodedata.normalize("NFKC", text))
    text = _FRAC.sub(r"\\frac", text)
    text = _SIZED.sub("", text)
    text = _SPACE_MACRO.sub(" ", text)
    text = _WRAPPED.sub(r"\1", text)
    text = _SPACES.sub(" ", text).strip()
    text = without_delimiters(text)
    if text.endswith((".", "。")):
        text = text[:-1].rstrip()
    return text


def prepared(text: str) -> str:
    """Return a form for parsing: powers written as `^{n}` and vulgar fractions kept apart from what NFKC makes of them."""
    text = _RAISED.sub(lambda m: "^{" + m.group().translate(SUPERSCRIPTS) + "}", text)
    text = "".join(_vulgar(c) for c in text)
    text = unicodedata.normalize("NFKC", text).replace("−", "-").replace("\u2044", "/")
    text = _SIZED.sub("", _FRAC.sub(r"\\frac", without_delimiters(text)))
    return text.strip().removesuffix("\\").rstrip()  # what is left of a control space at the end


def _vulgar(character: str) -> str:
    """Write ½ as `\\frac{1}{2}`, so that `1½` stays a mixed number."""
    if unicodedata.decomposition(character).startswith("<fraction>"):
        above, _, below = unicodedata.normalize("NFKC", character).partition("\u2044")
        if above and below:
            return f"\\frac{{{above}}}{{{below}}}"
    return character
