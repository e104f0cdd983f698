"""Hostile dataset files of every format, each with the code and line that it must be refused with."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.aborting_parquet import ABORTING, DECLARED_ROWS

Make = Callable[[], bytes]
GOOD = b'{"prompt":"a","response":"b"}\n'
BOM = b"\xef\xbb\xbf"
WIDE = ",".join(f"c{i}" for i in range(2000)).encode()


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def repeated(text: str, rows: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))


def dictionary_bomb() -> bytes:
    big = repeated("x" * (7 << 20), 20_000)
    return parquet({"prompt": big, "response": big}, compression="zstd", store_schema=False)


def page_bomb() -> bytes:
    big = pa.array(["\x01" * (1 << 20)] * 90)
    return parquet({"prompt": big, "response": big}, compression="zstd", use_dictionary=False)


def nested_bomb() -> bytes:
    turn = [{"role": "user", "content": "hi"}]
    big = [{"role": "user", "content": "x" * (4 << 20)}]
    return parquet({"messages": pa.array([turn] + [big] * 100)}, compression="zstd")


def column(values: list[Any], kind: Any = None) -> Make:
    return lambda: parquet({"prompt": pa.array(values, kind), "response": ["b"] * len(values)})


FILES: list[tuple[str, str, Make | bytes, str, int | None]] = [
    # name, file name, content, code, line
    ("empty", "a.jsonl", b"", "dataset_empty", None),
    ("blank lines", "a.jsonl", b"\n\n  \n\r\n", "dataset_empty", None),
    ("a BOM alone", "a.jsonl", BOM, "dataset_empty", None),
    ("broken row", "a.jsonl", GOOD * 2 + b'{"prompt":"a","response":\n' + GOOD, "json_error", 3),
    ("quoted like Python", "a.jsonl", GOOD + b"{'prompt':'a','response':'b'}\n", "json_error", 2),
    ("a trailing comma", "a.jsonl", b'{"prompt":"a","response":"b",}\n', "json_error", 1),
    ("a comment", "a.jsonl", b"# rows\n" + GOOD, "json_error", 1),
    ("HTML", "a.jsonl", b"<!doctype html>\n", "json_error", 1),
    ("zeros", "a.jsonl", b"\0" * 4096, "json_error", 1),
    ("invalid UTF-8", "a.jsonl", GOOD + b'{"prompt":"\xff","response":"b"}\n', "invalid_utf8", 2),
    ("overlong UTF-8", "a.jsonl", b'{"prompt":"\xc0\x80","response":"b"}\n', "invalid_utf8", 1),
    ("UTF-16", "a.jsonl", GOOD.decode().encode("utf-16"), "invalid_utf8", None),
    ("lone surrogate", "a.jsonl", b'{"prompt":"\\udc00","response":"b"}\n', "invalid_utf8", 1),
    ("NaN", "a.jsonl", b'{"prompt":"a","response":"b","w":NaN}\n', "not_finite", 1),
    ("-Infinity", "a.jsonl", b'{"prompt":"a","response":"b","w":-Infinity}\n', "not_finite", 1),
    ("1e999", "a.jsonl", b'{"prompt":"a","response":"b","w":1e999}\n', "not_finite", 1),
    ("5,000 digits", "a.jsonl", b'{"w":' + b"9" * 5000 + b"}\n", "number_too_large", 1),
    ("doubled key", "a.jsonl", b'{"prompt":"a","prompt":"c","response":"b"}\n', "duplicate_key", 1),
    ("too deep", "a.jsonl", b'{"prompt":' + b"[" * 5000 + b"]" * 5000 + b"}\n", "too_deep", 1),
    ("deep and open", "a.jsonl", b'{"a":' * 300_000, "too_deep", 1),
    ("one enormous line", "a.jsonl", lambda: b'{"prompt":"' + b"x" * (64 << 20), "line_too_long", 1),
    ("array a line", "a.jsonl", b'[{"prompt":"a"}]\n', "row_not_object", 1),
    ("number a line", "a.jsonl", b"5\n", "row_not_object", 1),
    ("null prompt", "a.jsonl", GOOD + b'{"prompt":null,"response":"b"}\n', "null_value", 2),
    ("number prompt", "a.jsonl", GOOD + b'{"prompt":5,"response":"b"}\n', "wrong_type", 2),
    ("list prompt", "a.jsonl", b'{"prompt":["a"],"response":"b"}\n', "wrong_type", 1),
    ("empty prompt", "a.jsonl", b'{"prompt":"","response":"b"}\n', "", 1),
    ("wrong column", "a.jsonl", b'{"question":"a","answer":"b"}\n', "missing_column", 1),
    ("column missing later", "a.jsonl", GOOD + b'{"prompt":"a"}\n', "missing_column", 2),
    ("two shapes", "a.jsonl", GOOD + b'{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]}\n', "mixed_shapes", 2),
    ("unknown role", "a.jsonl", b'{"messages":[{"role":"root","content":"x"}]}\n', "unknown_role", 1),
    ("messages text", "a.jsonl", b'{"messages":"hi"}\n', "", 1),
    ("messages empty", "a.jsonl", b'{"messages":[]}\n', "", 1),
    ("gzip by name", "a.jsonl.gz", lambda: gzip.compress(b"\0" * (50 << 20)), "compressed_file", None),
    ("gzip inside", "a.jsonl", lambda: gzip.compress(b"\0" * (50 << 20)), "compressed_file", None),
    ("zip inside", "a.json", b"PK\x03\x04" + b"\0" * 100, "compressed_file", None),
    ("zstd inside", "a.csv", b"\x28\xb5\x2f\xfd" + b"\0" * 100, "compressed_file", None),
    ("pickle", "a.pkl", b"\x80\x04.", "unsafe_format", None),
    ("loader script", "load.py", b"open('/tmp/canary','w')", "script_not_allowed", None),
    ("no ending", "rows", GOOD, "unknown_extension", None),
    ("an ending of colours", "a.\x1b[31m", GOOD, "", None),
    ("empty array", "a.json", b"[]", "dataset_empty", None),
    ("nothing", "a.json", b"", "dataset_empty", None),
    ("an object", "a.json", b'{"prompt":"a","response":"b"}', "json_not_array", None),
    ("open array", "a.json", b'[{"prompt":"a","response":"b"},\n{"prompt":"a"', "json_error", 2),
    ("no comma", "a.json", b'[{"prompt":"a","response":"b"}\n{"prompt":"a","response":"b"}]', "json_error", 2),
    ("text behind", "a.json", b'[{"prompt":"a","response":"b"}]\nx', "json_error", 2),
    ("deep array", "a.json", b"[" * 1_000_000, "", 1),
    ("one endless element", "a.json", lambda: b'[{"prompt":"' + b"x" * (64 << 20), "line_too_long", 1),
    ("array of numbers", "a.json", b"[1,2,3]", "row_not_object", 1),
    ("NaN in an array", "a.json", b'[{"prompt":"a","response":"b","w":NaN}]', "not_finite", 1),
    ("header alone", "a.csv", b"prompt,response\n", "dataset_empty", None),
    ("doubled columns", "a.csv", b"prompt,response,prompt\na,b,c\n", "csv_header", None),
    ("unnamed column", "a.csv", b"prompt,,response\na,b,c\n", "csv_header", None),
    ("2,000 columns", "a.csv", WIDE + b"\n" + WIDE + b"\n", "too_many_columns", None),
    ("semicolons", "a.csv", b"prompt;response\na;b\n", "csv_separator", None),
    ("few cells", "a.csv", b"prompt,response\na,b\na\n", "cell_count", 3),
    ("many cells", "a.csv", b"prompt,response\na,b,c\n", "cell_count", 2),
    ("open quote", "a.csv", b'prompt,response\n"a,b\n', "csv_error", 2),
    ("invalid UTF-8 in CSV", "a.csv", b"prompt,response\na,b\na,\xff\n", "invalid_utf8", 3),
    ("wrong columns in CSV", "a.csv", b"q,a\nx,y\n", "missing_column", None),
    ("an enormous cell", "a.csv", lambda: b'prompt,response\n"' + b"x" * (64 << 20), "line_too_long", 2),
    ("nothing in CSV", "a.csv", b"", "dataset_empty", None),
    ("not Parquet", "a.parquet", GOOD, "wrong_format", None),
    ("no rows in Parquet", "a.parquet", column([], pa.string()), "dataset_empty", None),
    ("cut Parquet", "a.parquet", lambda: column(["a"] * 999)()[:-20], "parquet_error", None),
    ("its footer lies", "a.parquet", lambda: b"PAR1" + b"x" * 100 + (2**31 - 1).to_bytes(4, "little") + b"PAR1", "parquet_error", None),
    ("its footer is garbage", "a.parquet", lambda: b"PAR1" + b"\xff" * 500 + (400).to_bytes(4, "little") + b"PAR1", "parquet_error", None),
    *((f"in its footer {name}", "a.parquet", data, "parquet_error", None) for name, data in ABORTING.items()),
    ("its footer declares rows that are not there", "a.parquet", DECLARED_ROWS, "parquet_error", None),
    ("Parquet by another name", "a.jsonl", column(["a"]), "wrong_format", None),
    ("bytes", "a.parquet", column([b"\x80\x04."]), "binary_column", None),
    ("bytes in lists", "a.parquet", column([[b"\x80\x04."]]), "binary_column", None),
    ("lists for a prompt", "a.parquet", column([["a"]]), "wrong_type", None),
    ("structs for a prompt", "a.parquet", column([{"a": {"b": 1}}]), "wrong_type", None),
    ("times for a prompt", "a.parquet", column([datetime(2026, 1, 1, tzinfo=UTC)]), "wrong_type", None),
    ("decimals for a prompt", "a.parquet", column([Decimal("1.5")]), "wrong_type", None),
    ("NaN for a prompt", "a.parquet", column([float("nan")]), "wrong_type", None),
    ("nulls for a prompt", "a.parquet", column([None], pa.string()), "null_value", None),
    ("wrong columns in Parquet", "a.parquet", lambda: parquet({"a": ["x"]}), "missing_column", None),
    ("2,000 columns in Parquet", "a.parquet", lambda: parquet({f"c{i}": ["x"] for i in range(2000)}), "parquet_too_large", None),
    ("a dictionary bomb", "a.parquet", dictionary_bomb, "parquet_too_large", None),
    ("a page bomb", "a.parquet", page_bomb, "parquet_too_large", None),
    ("a bomb in messages", "a.parquet", nested_bomb, "parquet_too_large", None),
]  # fmt: skip
