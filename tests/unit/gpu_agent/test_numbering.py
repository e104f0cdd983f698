from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from services.gpu_agent.core.batching import Limits, Queued, cut
from services.gpu_agent.core.numbering import MAX_LINE, Position, json_lines, number, of_types


def items(data: bytes, *, final: bool = True) -> list[tuple[int, dict]]:
    decoder = json_lines(of_types("metric", "phase"))
    return [
        (position.seq, item)
        for item, position in number(data, Position(), decoder, final=final)
        if item is not None
    ]


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def test_only_wanted_whole_lines_are_numbered() -> None:
    data = (
        line(type="metric", step=1)
        + line(type="sample", step=1)
        + b'{"type": "metric", "step": \n'
        + b'{"type": "metric", "loss": NaN}\n'
        + b"[1, 2]\n"
        + line(type="phase", name="training")
        + b'{"type": "metric", "st'
    )
    assert items(data) == [
        (1, {"type": "metric", "step": 1}),
        (2, {"type": "phase", "name": "training"}),
    ]


def test_torn_last_line_waits_while_the_run_lives() -> None:
    decoder = json_lines(of_types("metric"))
    steps = list(number(b'{"type": "metric"', Position(), decoder, final=False))
    assert steps == []


def test_endless_line_is_skipped_to_its_end() -> None:
    decoder = json_lines(of_types("metric"))
    first = list(number(b"x" * MAX_LINE, Position(), decoder, final=False))
    assert first == [(None, Position(0, MAX_LINE, "skip"))]
    rest = list(number(b'"}\n' + line(type="metric"), first[-1][1], decoder, final=False))
    assert [p.seq for _, p in rest] == [0, 1]


def test_long_texts_are_cut() -> None:
    ((_, item),) = items(line(type="metric", note="x" * 100_000))
    assert len(item["note"]) < 50_000
    assert "100000 characters" in item["note"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([b"{}\n", b"\n", b'{"type":"metric"}\n', b'{"type":"x', b"\xff\n"])),
    st.lists(st.integers(1, 300), max_size=6),
)
def test_numbers_do_not_depend_on_when_it_was_read(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    decoder = json_lines(of_types("metric"))
    whole = [s for s in number(data, Position(), decoder, final=False) if s[0] is not None]
    seen, here = [], Position()
    for stop in [*sorted({c for c in cuts if c < len(data)}), len(data)]:
        for step in number(data[here.offset : stop], here, decoder, final=False):
            here = step[1]
            if step[0] is not None:
                seen.append(step)
    assert seen == whole


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 5000), max_size=60), st.integers(1, 20), st.integers(100, 9000))
def test_batches_keep_order_and_bounds(sizes: list[int], count: int, most_bytes: int) -> None:
    queue = [Queued({"n": i}, size, Position(i + 1, i)) for i, size in enumerate(sizes)]
    limits = Limits(count, most_bytes, 0.05)
    batches = cut(queue, limits, 1.0, most=1000)
    assert [i["n"] for b in batches for i in b.items] == list(range(len(sizes)))
    for batch in batches:
        assert len(batch.items) <= count
        assert batch.first_seq == batch.items[0]["n"] + 1
        assert batch.end.seq == batch.items[-1]["n"] + 1
        size = sum(sizes[i["n"]] for i in batch.items)
        assert size <= most_bytes or len(batch.items) == 1
    young = cut(queue, limits, 0.0, most=1000)
    kept = len(sizes) - sum(len(b.items) for b in young)
    assert kept < count
    assert young == batches[: len(young)]


@given(
    st.lists(
        st.sampled_from(
            [
                b'{"type":"sample","step":1}',
                b'{"type":"metric","step":1,"metrics":{"loss":1.0}}',
                b'{"type":"metric","note":"sample"}',
                b'{"type":"sample","prompt":"\xed\xa0\x80"}',
                b'{"type":"sample","reward":NaN}',
                b"sample",
                b"",
            ]
        )
    )
)
def test_a_mark_changes_no_number(lines: list[bytes]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    marked = json_lines(of_types("sample"), mark=b"sample")
    whole = list(number(data, Position(), json_lines(of_types("sample")), final=True))
    assert list(number(data, Position(), marked, final=True)) == whole
