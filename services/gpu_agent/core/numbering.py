"""Dense numbers for what stands in append-only files: reading again from any earlier position gives the same numbers.

Every decision depends on the bytes alone, never on when they were read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

Item = dict[str, Any]
Decoder = Callable[[bytes, str, bool], Iterator[tuple[int, Item | None, str]]]
"""(bytes, state, final) → (end of what was consumed, an item or None, state after it).

What is not complete is left for the next call; with `final` nothing more will come, so that it counts as complete.
"""

MAX_LINE = 4 * 1024 * 1024
_SKIPPING = "skip"
_MAX_TEXT = 48 * 1024


@dataclass(frozen=True, slots=True)
class Position:
    """After item `seq`: what follows starts at byte `offset`, with the decoder in `state`."""

    seq: int = 0
    offset: int = 0
    state: str = ""

    def after(self, end: int, item: Item | None, state: str, base: int) -> Position:
        """Return the position after one step of a decoder that was started at byte `base`."""
        return Position(self.seq + (item is not None), base + end, state)


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes of the log that were given up before they were numbered: one item stands for them."""

    at: Position
    end: int
    lines: int
    bytes: int


def number(
    data: bytes, start: Position, decoder: Decoder, *, final: bool
) -> Iterator[tuple[Item | None, Position]]:
    """Yield every step with the position after it; `data` begins at `start.offset`."""
    here = start
    for end, item, state in decoder(data, start.state, final):
        here = here.after(end, item, state, start.offset)
        yield item, here


def json_lines(wanted: Callable[[Item], Item | None], *, mark: bytes = b"") -> Decoder:
    """Return a decoder of JSON lines that numbers those for which `wanted` returns an item.

    A damaged line has no number; a torn last line neither. A line without `mark` cannot be wanted and is not parsed:
    the kinds share one file, and most of it is not for each.
    """

    def decode(data: bytes, state: str, final: bool) -> Iterator[tuple[int, Item | None, str]]:
        start = 0
        while True:
            newline = data.find(b"\n", start)
            if newline < 0:
                break
            skip = state == _SKIPPING or data.find(mark, start, newline) < 0
            item = None if skip else _parse(data[start:newline], wanted)
            start, state = newline + 1, ""
            yield start, item, state
        rest = len(data) - start
        if rest >= MAX_LINE:
            yield len(data), None, _SKIPPING
        elif final and rest:
            yield len(data), None, ""

    return decode


def of_types(*types: str) -> Callable[[Item], Item | None]:
    """Return a filter that keeps records of these types, long texts cut."""
    names = frozenset(types)

    def wanted(record: Item) -> Item | None:
        return shorten(record) if record.get("type") in names else None

    return wanted


def shorten(record: Item) -> Item:
    """Return the record with texts of more than 48 KiB cut: a message of the bus has a limit."""
    long = {k: v for k, v in record.items() if isinstance(v, str) and len(v) > _MAX_TEXT}
    if not long:
        return record
    cut = {k: v[:_MAX_TEXT] + f"… ({len(v)} characters)" for k, v in long.items()}
    return {**record, **cut}


def _parse(line: bytes, wanted: Callable[[Item], Item | None]) -> Item | None:
    try:
        record = _JSON.decode(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return wanted(record) if isinstance(record, dict) else None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse)
"""Made once: `json.loads` with an argument makes one for each line, which costs as much as a short line itself."""


def with_gaps(position: Position, gaps: tuple[Gap, ...]) -> Gap | None:
    """Return the gap that begins exactly at `position`, or None."""
    return next(
        (g for g in gaps if g.at.offset == position.offset and g.at.seq == position.seq), None
    )


def past(gap: Gap) -> Position:
    """Return the position after a gap; the one item that stands for it has the number in between."""
    return replace(gap.at, seq=gap.at.seq + 1, offset=gap.end, state="")
