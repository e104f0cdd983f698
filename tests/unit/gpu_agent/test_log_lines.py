from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gpu_agent.core.loglines import LINE_LIMIT, decode
from services.gpu_agent.core.numbering import Position, number


def lines(data: bytes, *, final: bool = True) -> list[tuple[str, str]]:
    return [
        (item["level"], item["message"])
        for item, _ in number(data, Position(), decode, final=final)
        if item is not None
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[INFO] Step 1/2: loss=2\n", [("INFO", "Step 1/2: loss=2")]),
        (b"[WARNING] High memory usage: 90%\n", [("WARNING", "High memory usage: 90%")]),
        (b"[WARN] x\n[CRITICAL] y\n", [("WARNING", "x"), ("ERROR", "y")]),
        (b"plain\n", [("INFO", "plain")]),
        (b"[NOPE] x\n", [("INFO", "[NOPE] x")]),
        (b"\n", [("INFO", "")]),
        (b"no newline", [("INFO", "no newline")]),
        (b" 10%|#  \r 50%|## \r100%|###\n", [("INFO", "100%|###")]),
        (b"dos line\r\n", [("INFO", "dos line")]),
        (b"\x1b[31m[ERROR] red\x1b[0m\n", [("ERROR", "red")]),
        (b"bell\x07 and nul\x00\ttab\n", [("INFO", "bell and nul\ttab")]),
        (b"bad \xff utf8\n", [("INFO", "bad \ufffd utf8")]),
        ("中文\n".encode(), [("INFO", "中文")]),
    ],
)
def test_one_line(data: bytes, expected: list[tuple[str, str]]) -> None:
    assert lines(data) == expected


def test_traceback_is_one_error() -> None:
    data = (
        b"[INFO] before\n"
        b"Traceback (most recent call last):\n"
        b'  File "a.py", line 1, in f\n'
        b"    g()\n"
        b"ValueError: no\n"
        b"\n"
        b"During handling of the above exception, another exception occurred:\n"
        b"\n"
        b"Traceback (most recent call last):\n"
        b'  File "b.py", line 2\n'
        b"torch.OutOfMemoryError: CUDA out of memory\n"
        b"[INFO] after\n"
        b"plain\n"
    )
    levels = [level for level, _ in lines(data)]
    assert levels == ["INFO", *["ERROR"] * 10, "INFO", "INFO"]


def test_plain_line_behind_a_traceback_is_no_error() -> None:
    data = b"Traceback (most recent call last):\n  x\nE: y\nback to work\n"
    assert [level for level, _ in lines(data)] == ["ERROR", "ERROR", "ERROR", "INFO"]


def test_partial_line_waits_for_its_end() -> None:
    assert lines(b"whole\npart", final=False) == [("INFO", "whole")]


def test_long_line_is_cut_at_characters_and_keeps_its_level() -> None:
    text = "é" * LINE_LIMIT
    found = lines(b"[ERROR] " + text.encode() + b"\nnext\n")
    assert "".join(m for _, m in found[:-1]) == text
    assert {level for level, _ in found[:-1]} == {"ERROR"}
    assert found[-1] == ("INFO", "next")
    assert all(len(m.encode()) <= LINE_LIMIT for _, m in found)


def test_long_progress_bar_is_folded() -> None:
    bar = b"".join(b"%d%%|#####\r" % i for i in range(5000))
    assert lines(bar + b"100%|done\n") == [("INFO", "100%|done")]


pieces = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from(
            [
                b"\n",
                b"\r",
                b"\r\n",
                b"[ERROR] ",
                b"Traceback (most recent call last):\n",
                b"x" * LINE_LIMIT,
                "é".encode() * 9000,
                b"\r" + b"y" * 9000,
            ]
        ),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(pieces, st.lists(st.integers(1, 40_000), max_size=8))
def test_numbers_do_not_depend_on_when_it_was_read(parts: list[bytes], cuts: list[int]) -> None:
    """Read in any pieces, from any earlier position: the same items with the same numbers."""
    data = b"".join(parts)
    whole = list(number(data, Position(), decode, final=True))
    seen = []
    here = Position()
    for stop in [*sorted({c for c in cuts if c < len(data)}), len(data)]:
        final = stop == len(data)
        for item, position in number(data[here.offset : stop], here, decode, final=final):
            seen.append((item, position))
            here = position
    assert seen == whole
    assert here.offset == len(data)
    for _, start in whole[:: max(1, len(whole) // 3)]:
        rest = list(number(data[start.offset :], start, decode, final=True))
        assert rest == [step for step in whole if step[1].offset > start.offset]
