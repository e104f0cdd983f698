"""Sets, lists, tuples and intervals of plain numbers: compared without computer algebra."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from services.reward.core.number import NotANumber, Number, TooComplex, parse_number, same
from services.reward.core.units import measured

Kind = Literal["set", "round", "half_open", "closed"]
_SET: Final = re.compile(r"^\\\{(.*)\\\}$|^\\lbrace(.*)\\rbrace$", re.DOTALL)
MAX_MEMBERS: Final = 200


@dataclass(frozen=True, slots=True)
class Collection:
    """`set`: `\\{1,2\\}` or a bare list; `round`: a tuple or an open interval; the others are intervals by their brackets."""

    kind: Kind
    brackets: str
    members: tuple[Number, ...]


def parse_collection(text: str) -> Collection | None:
    """Return a collection of at least two numbers (any count within `\\{…\\}`), or None where it is something else."""
    kind: Kind = "set"
    brackets = ""
    found = _SET.match(text)
    if found is not None:
        inner = found.group(1) or found.group(2) or ""
    elif text[:1] in "([" and text[-1:] in ")]" and _is_one_group(text):
        inner, brackets = text[1:-1], text[0] + text[-1]
        kind = {"()": "round", "[]": "closed"}.get(brackets, "half_open")  # type: ignore[assignment]
    else:
        inner = text
    pieces = _split(inner)
    if (len(pieces) < 2 and found is None) or len(pieces) > MAX_MEMBERS:
        return None
    try:
        members = tuple(parse_number(measured(piece).number) for piece in pieces)
    except (NotANumber, TooComplex):
        return None
    return Collection(kind, brackets, members)


def same_collection(gold: Collection, answer: Collection, rtol: float, atol: float) -> bool:
    """Compare: sets and bare lists without order and repetition, tuples in order, intervals with their brackets."""
    if (gold.kind, gold.brackets) != (answer.kind, answer.brackets):
        return False
    if gold.kind != "set":
        return len(gold.members) == len(answer.members) and all(
            same(a, b, rtol, atol) for a, b in zip(gold.members, answer.members, strict=True)
        )
    return all(any(same(g, a, rtol, atol) for a in answer.members) for g in gold.members) and all(
        any(same(g, a, rtol, atol) for g in gold.members) for a in answer.members
    )


def _is_one_group(text: str) -> bool:
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0 and place < len(text) - 1:
            return False
    return depth == 0


def _split(text: str) -> list[str]:
    """Split at commas and semicolons that stand in no bracket."""
    pieces, depth, start = [], 0, 0
    for place, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in ",;" and depth == 0 and text[place - 1 : place] != "\\":
            pieces.append(text[start:place])
            start = place + 1
    return [*pieces, text[start:]]
