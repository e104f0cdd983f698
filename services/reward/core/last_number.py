"""The last number that stands in a text, as a token."""

from __future__ import annotations

import re
from typing import Final

# Full-width forms occur in Chinese text; U+2212 is the typographic minus.
FOLDED: Final = str.maketrans("０１２３４５６７８９．，－＋％／−", "0123456789.,-+%/-")

_GROUPED: Final = r"[0-9]{1,3}(?:(?:,|\{,\}|\\,)[0-9]{3})++(?![0-9])"
_UNSIGNED: Final = rf"(?>(?:{_GROUPED}|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)"
_POWER_OF_TEN: Final = r"(?:[eE][-+]?[0-9]++|\s?(?:\\times|\\cdot|×)\s?10\s?\^\s?(?:\{\s?[-+]?[0-9]++\s?\}|[-+]?[0-9]++))"
_INNER: Final = rf"\s*[-+]?{_UNSIGNED}\s*"
_FRAC: Final = rf"\\[dtc]?frac\s?(?:\{{{_INNER}\}}\s?\{{{_INNER}\}}|[0-9]\s?[0-9])"

# [A-Za-z0-9_] and not \w: \w counts Chinese characters as letters and loses 共有12个.
_TOKEN: Final = re.compile(
    rf"(?:(?<![A-Za-z0-9)])[-+])?"
    rf"(?<![A-Za-z0-9_^])(?<![\^_]\{{)(?<![0-9]\.)"
    rf"(?>(?:{_UNSIGNED})?{_FRAC}|{_UNSIGNED}(?:{_POWER_OF_TEN}|/{_UNSIGNED})?)"
    rf"(?![A-Za-z0-9_^])(?:\s?\\?%)?"
)


def last_number(text: str) -> str | None:
    """Return the last number of a text as it stands there (full-width forms folded), or None.

    One token is: a sign directly attached, digits with groups of three, decimals, an exponent or a power of ten, a
    fraction, a percent sign. Digits glued to an ASCII letter, `_` or `^` are none (`H2O`, `x_1`, `cm^2`), and a full
    stop at the end of a sentence is no decimal point.
    """
    folded = text.translate(FOLDED) if not text.isascii() else text
    for start in _windows(folded):
        last = None
        for found in _TOKEN.finditer(folded, start):
            last = found
        if last is not None and (start == 0 or last.start() > start + 1):
            return last.group()
    return None


def all_numbers(text: str) -> list[str]:
    """Return every number of a text, as tokens."""
    return [found.group() for found in _TOKEN.finditer(text.translate(FOLDED))]


def _windows(text: str) -> list[int]:
    """Return where to begin to look: near the end first, since that is where answers stand.

    A window begins at white space that no token may hold two of, so that it cuts none in two.
    """
    starts = []
    for back in (200, 2000):
        if len(text) > back:
            at = text.rfind("\n", 0, len(text) - back)
            if at < 0:
                at = text.rfind(". ", 0, len(text) - back)
            if at >= 0:
                starts.append(at)
    return [*starts, 0]
