"""Reading dataset files: every kind of broken input ends in a finding with its place, never in an exception."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.preflight.finding import Finding
from shared.preflight.rows import Row, read_rows
from shared.preflight.sources import Limits

GOOD = {"prompt": "你好", "response": "您好"}


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def findings(path: Path, limits: Limits | None = None) -> list[Finding]:
    return [item for item in read_rows(path, limits) if isinstance(item, Finding)]


def rows(path: Path, limits: Limits | None = None) -> list[Row]:
    return [item for item in read_rows(path, limits) if isinstance(item, Row)]


def test_the_same_rows_come_out_of_every_format(tmp_path: Path) -> None:
    table = [{"prompt": "一, 二", "response": "三\n“四”"}, {"prompt": 'a "b"', "response": "c"}]
    write(tmp_path, "a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table))
    write(tmp_path, "a.json", json.dumps(table, ensure_ascii=False, indent=2))
    write(tmp_path, "a.csv", 'prompt,response\n"一, 二","三\n“四”"\n"a ""b""",c\n')
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "a.parquet")
    for ending in ("jsonl", "json", "csv", "parquet"):
        assert [row.values for row in read_rows(tmp_path / f"a.{ending}")] == table, ending  # type: ignore[union-attr]


def test_places(tmp_path: Path) -> None:
    lines = rows(write(tmp_path, "a.jsonl", '{"a":1}\n\n{"a":2}\n'))
    assert [(row.place.line, row.place.row) for row in lines] == [(1, None), (3, None)]
    array = rows(write(tmp_path, "a.json", '[\n {"a":1},\n\n {"a":\n2}, {"a":3}\n]'))
    assert [(row.place.line, row.place.row) for row in array] == [(2, 1), (4, 2), (5, 3)]
    cells = rows(write(tmp_path, "a.csv", 'a\n"x\ny"\nz\n'))
    assert [row.place.line for row in cells] == [2, 4]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_bom_and_crlf_are_accepted(tmp_path: Path, ending: str) -> None:
    text = {
        "jsonl": '{"a": "1"}\r\n{"a": "2"}\r\n',
        "json": '[\r\n{"a": "1"},\r\n{"a": "2"}\r\n]',
        "csv": "a\r\n1\r\n2\r\n",
    }
    path = write(tmp_path, f"a.{ending}", b"\xef\xbb\xbf" + text[ending].encode())
    assert [item.values for item in read_rows(path)] == [{"a": "1"}, {"a": "2"}]  # type: ignore[union-attr]


BAD: list[tuple[str, str, bytes, str, int | None]] = [
    ("empty", "a.jsonl", b"", "dataset_empty", None),
    ("blank lines", "a.jsonl", b"\n  \n\r\n", "dataset_empty", None),
    ("empty array", "a.json", b" [ ] ", "dataset_empty", None),
    ("header alone", "a.csv", b"prompt,response\n", "dataset_empty", None),
    ("bad JSON", "a.jsonl", b'{"a":1}\n{"a":}\n', "json_error", 2),
    ("cut line", "a.jsonl", b'{"a":1}\n{"a":"x', "json_error", 2),
    ("bad UTF-8", "a.jsonl", b'{"a":1}\n{"a":"\xff"}\n', "invalid_utf8", 2),
    ("lone surrogate", "a.jsonl", b'{"a":"\\ud800"}\n', "invalid_utf8", 1),
    ("UTF-16", "a.jsonl", '{"a":1}'.encode("utf-16"), "invalid_utf8", 1),
    ("NaN", "a.jsonl", b'{"a":NaN}\n', "not_finite", 1),
    ("overflow", "a.jsonl", b'{"a":1e999}\n', "not_finite", 1),
    ("huge integer", "a.jsonl", b'{"a":' + b"9" * 5000 + b"}\n", "number_too_large", 1),
    ("duplicate key", "a.jsonl", b'{"a":1,"a":2}\n', "duplicate_key", 1),
    ("inner duplicate", "a.jsonl", b'{"x":[{"b":1,"b":2}]}\n', "duplicate_key", 1),
    ("deep", "a.jsonl", b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}\n", "too_deep", 1),
    ("deep and open", "a.jsonl", b"[" * 200_000, "too_deep", 1),
    ("array line", "a.jsonl", b'[{"a":1}]\n', "row_not_object", 1),
    ("number row", "a.json", b"[\n5]", "row_not_object", 2),
    ("object for array", "a.json", b'{"a":1}', "json_not_array", 1),
    ("lines in json", "a.json", b'\n{"a":1}\n{"a":2}\n', "json_not_array", 2),
    ("open array", "a.json", b'[{"a":1},\n{"a":2}', "json_error", 2),
    ("open array, cut element", "a.json", b'[{"a":1},\n{"a":', "json_error", 2),
    ("text behind the array", "a.json", b'[{"a":1}]\n]', "json_error", 2),
    ("missing comma", "a.json", b'[{"a":1}\n{"a":2}]', "json_error", 2),
    ("trailing comma", "a.json", b'[{"a":1},\n]', "json_error", 2),
    ("two commas", "a.json", b'[{"a":1},\n,{"a":2}]', "json_error", 2),
    ("bad element", "a.json", b'[{"a":1},\n{"a":nope}]', "json_error", 2),
    ("wrong closing", "a.json", b'[{"a":1}\n,}]', "json_error", 2),
    ("array bad UTF-8", "a.json", b'[{"a":1},\n{"a":"\xc3("}]', "invalid_utf8", 2),
    ("few cells", "a.csv", b"a,b\n1,2\n3\n", "cell_count", 3),
    ("many cells", "a.csv", b"a,b\n1,2,3\n", "cell_count", 2),
    ("open quote", "a.csv", b'a,b\n"1,2\n', "csv_error", 2),
    ("text after quote", "a.csv", b'a,b\n"1"x,2\n', "csv_error", 2),
    ("same header twice", "a.csv", b"a,a\n1,2\n", "csv_header", 1),
    ("unnamed column", "a.csv", b"a,\n1,2\n", "csv_header", 1),
    ("semicolons", "a.csv", b"a;b\n1;2\n", "csv_separator", 1),
    ("CSV bad UTF-8", "a.csv", b"a,b\n1,\xff\n", "invalid_utf8", 2),
    (
        "many columns",
        "a.csv",
        b",".join(b"c%d" % n for n in range(2000)) + b"\n",
        "too_many_columns",
        1,
    ),
    ("gzip named jsonl", "a.jsonl", gzip.compress(b'{"a":1}'), "compressed_file", None),
    ("gzip", "a.jsonl.gz", gzip.compress(b'{"a":1}'), "compressed_file", None),
    ("zip in json", "a.json", b"PK\x03\x04....", "compressed_file", None),
    ("script", "load.py", b"print(1)", "script_not_allowed", None),
    ("pickle", "a.pkl", b"\x80\x04.", "unsafe_format", None),
    ("unknown", "a.xlsx", b"1", "unknown_extension", None),
    ("no ending", "data", b"1", "unknown_extension", None),
    ("not Parquet", "a.parquet", b'{"a":1}', "wrong_format", None),
    ("Parquet as jsonl", "a.jsonl", b"PAR1abcd", "wrong_format", None),
    ("short Parquet", "a.parquet", b"PAR1PAR1", "parquet_error", None),
    ("cut Parquet", "a.parquet", b"PAR1" + b"x" * 50, "parquet_error", None),
    (
        "Parquet garbage footer",
        "a.parquet",
        b"PAR1" + b"x" * 30 + (20).to_bytes(4, "little") + b"PAR1",
        "parquet_error",
        None,
    ),
]


@pytest.mark.parametrize(
    ("name", "data", "code", "line"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_input(tmp_path: Path, name: str, data: bytes, code: str, line: int | None) -> None:
    found = findings(write(tmp_path, name, data))
    assert [(finding.code, finding.line) for finding in found] == [(code, line)]
    assert found[0].message("en") != found[0].message("zh-CN")
    assert found[0].severity == "error"
    if line is not None and code != "csv_header":
        assert (
            str(line) in found[0].message_en
            or found[0].value == "UTF-16"
            or "header" in found[0].message_en
            or code == "json_not_array"
        )


def test_good_rows_around_bad_ones_are_still_read(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'{"a":1}\n{bad\n{"a":2}\n\xff\n{"a":3}\n')
    assert [row.values["a"] for row in rows(path)] == [1, 2, 3]
    assert [(f.code, f.line) for f in findings(path)] == [("json_error", 2), ("invalid_utf8", 4)]


def test_json_error_names_column_and_shows_the_place(tmp_path: Path) -> None:
    (finding,) = findings(write(tmp_path, "a.jsonl", '{"prompt": "你好", "response": nope}\n'))
    assert "column 30" in finding.message_en
    assert "nope" in (finding.value or "")
    assert "第 30 列" in finding.message_zh


def test_control_characters_do_not_reach_a_message(tmp_path: Path) -> None:
    (finding,) = findings(write(tmp_path, "a.jsonl", b'{"a": \x1b[31m\xe2\x80\xae}\n'))
    assert "\x1b" not in finding.message_en
    assert "\u202e" not in finding.message_en


def test_a_long_line_is_skipped_and_counted(tmp_path: Path) -> None:
    limits = Limits(line_bytes=100)
    exact = b'{"a":"' + b"x" * 92 + b'"}'
    path = write(tmp_path, "a.jsonl", b'{"a":"' + b"x" * 300_000 + b'"}\n' + exact + b"\n{}\n")
    assert len(exact) == 100
    assert [(f.code, f.line) for f in findings(path, limits)] == [("line_too_long", 1)]
    assert [row.place.line for row in rows(path, limits)] == [2, 3]
    array = write(tmp_path, "a.json", b'[{"a":"' + b"x" * 300 + b'"}]')
    assert [f.code for f in findings(array, limits)] == ["line_too_long"]
    table = write(tmp_path, "a.csv", b"a\n" + b"x" * 300 + b"\ny\n")
    assert [f.code for f in findings(table, limits)] == ["line_too_long"]


def test_memory_stays_bounded_for_one_endless_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as stream:
        stream.truncate(200 << 20)  # sparse: 200 MiB of NUL without a line break
    tracemalloc.start()
    try:
        assert [f.code for f in findings(path, Limits(line_bytes=1 << 20))] == ["line_too_long"]
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_hostile_strings_are_scanned_in_linear_time(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b"[" * 65 + b'"' + b'\\"' * 2_000_000)
    assert [f.code for f in findings(path)] == ["too_deep"]


def test_brackets_inside_strings_do_not_count_as_depth(tmp_path: Path) -> None:
    text = json.dumps({"prompt": "[{" * 500 + '\\"', "response": "x"})
    assert len(rows(write(tmp_path, "a.jsonl", text))) == 1
    assert len(rows(write(tmp_path, "a.json", f"[{text},{text}]"))) == 2


def test_what_is_not_a_plain_file(tmp_path: Path) -> None:
    target = write(tmp_path, "real.jsonl", json.dumps(GOOD))
    link = tmp_path / "link.jsonl"
    link.symlink_to(target)
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    (tmp_path / "folder.jsonl").mkdir()
    large = tmp_path / "large.jsonl"
    with large.open("wb") as stream:
        stream.truncate(10 << 30)
    assert [f.code for f in findings(link)] == ["symlink_refused"]
    assert [f.code for f in findings(pipe)] == ["not_a_regular_file"]
    assert [f.code for f in findings(tmp_path / "folder.jsonl")] == ["dataset_is_directory"]
    assert [f.code for f in findings(tmp_path)] == ["dataset_is_directory"]
    assert [f.code for f in findings(large)] == ["file_too_large"]
    assert [f.code for f in findings(Path("a\x00.jsonl"))] == ["dataset_not_readable"]
    assert [f.code for f in findings(tmp_path / ("x" * 300 + ".jsonl"))] == ["dataset_not_readable"]
    (missing,) = findings(tmp_path / "reel.jsonl")
    assert missing.code == "dataset_not_found"
    assert "real.jsonl" in missing.message_en


def test_parquet_bounds(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["x" * 1000] * 500}), path, row_group_size=100)
    assert [f.code for f in findings(path, Limits(row_groups=3))] == ["parquet_too_large"]
    assert [f.code for f in findings(path, Limits(row_group_bytes=100))] == ["parquet_too_large"]
    assert [f.code for f in findings(path, Limits(footer_bytes=10))] == ["parquet_too_large"]
    assert [f.code for f in findings(path, Limits(batch_bytes=100))] == ["parquet_too_large"]
    assert [f.code for f in findings(path, Limits(columns=0))] == ["parquet_too_large"]
    assert [row.place.row for row in rows(path)][-1] == 500


def test_parquet_with_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["x"], "blob": [{"inner": [b"\x80\x04."]}]}), path)
    (finding,) = findings(path)
    assert (finding.code, finding.column) == ("binary_column", "blob")


def test_damaged_parquet_pages_end_with_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"prompt": [f"text {n}" for n in range(2000)]}), path, compression="zstd"
    )
    data = bytearray(path.read_bytes())
    data[40:400] = b"\xaa" * 360
    path.write_bytes(data)
    assert [f.code for f in findings(path)] == ["parquet_error"]


FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SNIPPETS = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from(
            [
                b'{"prompt":"x"}',
                b"\n",
                b"\r\n",
                b"[",
                b"]",
                b"{",
                b"}",
                b",",
                b'"',
                b"\\",
                b"prompt,response\n",
                b"\xef\xbb\xbf",
                b"NaN",
                b"\\ud800",
                b"1e999",
                b"[" * 70,
                "“汉字”".encode(),
                b"\x00",
                b"PAR1",
            ]
        ),
    ),
    max_size=25,
).map(b"".join)


@FUZZ
@given(data=SNIPPETS, ending=st.sampled_from(["jsonl", "json", "csv", "parquet"]))
def test_no_bytes_raise(tmp_path: Path, data: bytes, ending: str) -> None:
    path = write(tmp_path, f"fuzz.{ending}", data)
    items = list(read_rows(path, Limits(line_bytes=200)))
    assert items, "a file gives rows, or at least the finding that there are none"
    for item in items:
        if isinstance(item, Finding):
            assert item.message("en").encode()
            assert item.message("zh").encode()


@settings(FUZZ, max_examples=20)  # each is read in a process of its own
@given(
    edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 400),
)
def test_no_damaged_parquet_raises(tmp_path: Path, edits: list[tuple[int, int]], cut: int) -> None:
    path = tmp_path / "fuzz.parquet"
    whole = tmp_path / "whole.parquet"
    if not whole.exists():
        pq.write_table(
            pa.table(
                {"prompt": [f"t{n}" for n in range(50)], "n": [{"x": [n]} for n in range(50)]}
            ),
            whole,
        )
    data = bytearray(whole.read_bytes())
    for at, value in edits:
        data[at % len(data)] = value
    path.write_bytes(bytes(data[: len(data) - cut]) if cut < 100 else bytes(data))
    for item in read_rows(path):
        assert isinstance(item, Row | Finding)


JSON: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(FUZZ, max_examples=60)
@given(
    table=st.lists(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5), JSON, max_size=4
        ),
        min_size=1,
        max_size=5,
    ),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
)
def test_array_and_lines_agree_with_the_json_module(
    tmp_path: Path, table: list[dict[str, object]], indent: int | None, ascii_only: bool
) -> None:
    lines = write(
        tmp_path, "t.jsonl", "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in table)
    )
    array = write(tmp_path, "t.json", json.dumps(table, ensure_ascii=ascii_only, indent=indent))
    assert [row.values for row in rows(lines)] == table
    assert [row.values for row in rows(array)] == table
