"""The last `\\boxed{…}` of a text, by matching braces in one pass."""

from __future__ import annotations

import re
from typing import Final

_BOX: Final = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE: Final = re.compile(r"\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    """Return what the last `\\boxed{}` or `\\fbox{}` holds, trimmed; None where it is unclosed, empty or absent.

    The last one to be opened counts, so of nested boxes the inner one. `\\{`, `\\}` and `\\\\` are no braces.
    """
    start = _last_start(text)
    if start is None:
        return None
    depth = 1
    for found in _BRACE.finditer(text, start):
        token = found.group()
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                return text[start : found.start()].strip() or None
    return None


def _last_start(text: str) -> int | None:
    """Return where the content of the last box begins; looks from the end, since answers stand there."""
    end = len(text)
    while True:
        at = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
        if at < 0:
            return None
        found = _BOX.match(text, at)
        if found is not None:
            return found.end()
        end = at
