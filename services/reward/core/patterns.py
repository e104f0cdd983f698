"""Regular expressions of users over completions of models: both untrusted, so every search has a limit."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import regex

SECONDS: Final = 0.05


@lru_cache(maxsize=512)
def compiled(pattern: str) -> regex.Pattern[str]:
    """Return a compiled pattern. Raises ValueError with what is wrong with it."""
    try:
        return regex.compile(pattern, regex.DOTALL)
    except regex.error as error:
        raise ValueError(str(error)) from None


def found(pattern: str, text: str, *, whole: bool = False) -> bool | None:
    """Tell whether a pattern is found in a text (or describes the whole of it); None after 50 ms."""
    search = compiled(pattern).fullmatch if whole else compiled(pattern).search
    try:
        return search(text, timeout=SECONDS) is not None
    except TimeoutError:
        return None
