"""Whatever bytes come in, the readers of the edge answer with a refusal of ours or a value, never with anything else."""

from __future__ import annotations

import contextlib
import json
import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.api.jobs.cursor import Cursor, read_cursor, write_cursor
from services.api.jobs.filter_grammar import parse_filter
from services.api.jobs.where import where
from services.api.strict_json import parse
from shared.errors import TrainyardError
from shared.language import language

KEY = b"k" * 32
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | FINITE | PLAIN,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(PLAIN, inner, max_size=5),
    max_leaves=20,
)
WORDS = st.sampled_from(
    [
        "status",
        "=",
        "!=",
        "<",
        ">=",
        ":",
        "AND",
        "OR",
        "NOT",
        "(",
        ")",
        "-name",
        "config.seed",
        "1e-5",
        "RUNNING",
        "tags",
        '"x y"',
        "'",
        "*",
        "created_at",
        "2026-01-01T00:00:00Z",
        "null",
        "host",
        "\\",
    ]
)


@given(JSON)
@settings(max_examples=200, deadline=None)
def test_json_is_read_as_the_standard_library_reads_it(value: object) -> None:
    for ascii_only in (True, False):
        assert parse(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=200))
@example(b"[" * 5000)
@example(b'{"a":' * 70 + b"1" + b"}" * 70)
@example(b"-" + b"9" * 10_000)
@example(b"1e999")
@example(b'"\\ud800"')
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_a_document_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(TrainyardError):
        value = parse(data)
        assert not (isinstance(value, float) and not math.isfinite(value))


@given(st.lists(WORDS | PLAIN, max_size=12).map(" ".join))
@settings(max_examples=500, deadline=None)
def test_any_filter_is_a_condition_or_a_refusal(text: str) -> None:
    with contextlib.suppress(TrainyardError):
        tree = parse_filter(text)
        for dialect in ("sqlite", "postgresql"):
            where(tree, dialect)


@given(st.text(max_size=100) | st.binary(max_size=80).map(lambda b: b.hex()))
@settings(max_examples=200, deadline=None)
def test_no_text_is_a_cursor_but_ours(text: str) -> None:
    with contextlib.suppress(TrainyardError):
        read_cursor(text, KEY, "name", "s")
        raise AssertionError(text)
    ours = Cursor("name", text, "u", "s")
    with contextlib.suppress(UnicodeEncodeError):
        if len(text) < 80:
            assert read_cursor(write_cursor(ours, KEY), KEY, "name", "s") == ours


@given(st.text(max_size=100))
@settings(max_examples=200, deadline=None)
def test_any_header_gives_a_language(header: str) -> None:
    assert language(header) in {"en", "zh"}
