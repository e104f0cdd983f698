"""How much of REQUESTS may go: nothing while there is room, so that a restored database finds what it lacks."""

from __future__ import annotations

HALF, MOST = 0.5, 0.75
"""Parts of the stream's bound: from the first on the older half of the messages goes, from the second on all that is applied."""


def removable(applied: int, first_seq: int, last_seq: int, held: int, bound: int) -> int:
    """Return the sequence up to which messages may be removed, 0 for none; never beyond `applied`.

    `held` and `bound` in bytes; a `bound` of 0 or less means that there is none.
    """
    if bound <= 0 or held <= bound * HALF or applied < first_seq:
        return 0
    if held > bound * MOST:
        return applied
    return min(applied, first_seq + (last_seq - first_seq) // 2)
