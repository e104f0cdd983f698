r"""Exact match of a completion with its reference; where the reference holds `\boxed{…}`, of what the boxes hold."""

from __future__ import annotations

_BOX = "\\boxed{"


def matches(completion: str, reference: str) -> bool:
    """Compare the last boxes if the reference has one, else the whole texts; white space around them does not count."""
    expected = last_boxed(reference)
    if expected is None:
        return completion.strip() == reference.strip()
    given = last_boxed(completion)
    return given is not None and given.strip() == expected.strip()


def last_boxed(text: str) -> str | None:
    r"""Return what the last `\boxed{…}` holds, braces inside it balanced, or None where none is closed."""
    start = text.rfind(_BOX)
    while start >= 0:
        depth = 1
        for position in range(start + len(_BOX), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start + len(_BOX) : position]
        start = text.rfind(_BOX, 0, start)
    return None
