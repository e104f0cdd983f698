"""The part of a completion that counts: what follows the reasoning."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def final_part(completion: str) -> str | None:
    """Return the text after the last `</think>`, or None where nothing is answered.

    A `<think>` that is opened after it and never closed means that the answer was not reached; blank text is no answer.
    """
    _, closed, rest = completion.rpartition(CLOSE)
    part = rest if closed else completion
    if OPEN in part or not part.strip():
        return None
    return part
