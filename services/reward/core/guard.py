"""Refuses in microseconds what would keep a computer algebra system busy for ever."""

from __future__ import annotations

import re
from typing import Final

MAX_LENGTH: Final = 400
MAX_NESTING: Final = 30
_HEAVY: Final = re.compile(r"!|\\(?:sum|prod|int|oint|lim|iint|bigcup|bigcap)(?![A-Za-z])")
_LONG_NUMBER: Final = re.compile(r"[0-9]{300}")
_LONG_EXPONENT: Final = re.compile(r"\^\s*(?:[0-9]{4}|\{[^{}]*[0-9]{4})")


def too_complex(text: str) -> bool:
    """Tell whether a formula is refused before any symbolic work.

    Refused are: over 400 characters, factorials, sums and integrals, power towers, exponents of four digits and more,
    nesting deeper than 30. Reference, section 2: Math-Verify issue 65 and others hang on these.
    """
    return (
        len(text) > MAX_LENGTH
        or _HEAVY.search(text) is not None
        or _LONG_NUMBER.search(text) is not None
        or _LONG_EXPONENT.search(text) is not None
        or _nested(text)
    )


def _nested(text: str) -> bool:
    """Look for deep brackets, and for a power within an exponent."""
    depth, exponents = 0, []
    for place, character in enumerate(text):
        if character in "{([":
            depth += 1
            if depth > MAX_NESTING:
                return True
            if text[:place].rstrip().endswith("^"):
                exponents.append(depth)
        elif character in "})]":
            if exponents and exponents[-1] == depth:
                exponents.pop()
            depth -= 1
        elif character == "^" and (exponents or _follows_a_power(text, place)):
            return True
    return False


def _follows_a_power(text: str, place: int) -> bool:
    """Find `a^b^c` without braces."""
    return re.search(r"\^\s*[A-Za-z0-9]+\s*$", text[:place]) is not None
