"""The process that reads Parquet files: what it may hold, how it ends, and that nothing ends with it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.preflight import parquet_reader
from shared.preflight.dataset import check_dataset
from shared.preflight.finding import Finding
from shared.preflight.parquet_wire import decode_rows, encode_rows, largest_frame
from shared.preflight.rows import Row, read_rows
from shared.preflight.sources import Limits
from tests.hostile.aborting_parquet import ABORTING, DECLARED_ROWS

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 60.0


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.parquet"
    texts = [f"{n} " * 400 for n in range(20_000)]
    pq.write_table(pa.table({"prompt": texts, "response": texts}), path)
    return path


def readers(pid: int | None = None) -> list[psutil.Process]:
    """The reading processes below a process."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # another test's child, gone or a zombie
            if any("parquet_worker" in word for word in child.cmdline()):
                found.append(child)
    return found


def wait_gone(process: psutil.Process) -> None:
    deadline = time.monotonic() + SECONDS
    with contextlib.suppress(psutil.NoSuchProcess):  # it went between two looks
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the reading process is still there"
            time.sleep(0.02)


@pytest.mark.parametrize("data", ABORTING.values(), ids=ABORTING)
def test_a_footer_that_ends_the_parser_is_a_finding(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(data)
    (finding,) = read_rows(path)
    assert isinstance(finding, Finding)
    assert (finding.code, finding.row) == ("parquet_error", 1)
    assert (
        finding.message_en
        == "The Parquet file is damaged after 0 rows (its parser ended with SIGABRT). Write it again."
    )
    assert "SIGABRT" in finding.message_zh
    report = check_dataset(path, "sft")
    assert [f.code for f in report.errors] == ["parquet_error"]
    assert not readers()


def test_rows_that_a_footer_only_declares_are_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(DECLARED_ROWS)
    (finding,) = read_rows(path)
    assert isinstance(finding, Finding)
    assert finding.code == "parquet_error"


def test_values_arrive_as_they_are(tmp_path: Path) -> None:
    values: dict[str, object] = {
        "text": 'a "b"\n\x00\u2028 汉字 😀',
        "none": None,
        "whole": 2**63 - 1,
        "real": float("inf"),
        "truth": True,
        "moment": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        "naive": datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001 - a Parquet file may hold it
        "day": date(2026, 1, 2),
        "clock": clock_time(3, 4, 5, 6),
        "span": timedelta(days=3, microseconds=7),
        "exact": Decimal("1.50"),
        "nested": [{"when": [date(2026, 1, 2)], "text": "Decimal"}],
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([values, values]), path)
    items = list(read_rows(path))
    assert [item.values for item in items if isinstance(item, Row)] == [values, values]
    assert [item.place.row for item in items if isinstance(item, Row)] == [1, 2]


def test_no_text_of_a_file_is_taken_for_a_value_of_another_type() -> None:
    rows: list[dict[str, object]] = [{"0123456789abcdef": "Decimal", "text": "1", "day": date.min}]
    kind, data = encode_rows(rows)
    assert decode_rows(kind, data) == rows


def test_reading_stops_early_without_leaving_a_process(large: Path) -> None:
    items = read_rows(large)
    next(items)
    (reader,) = readers()
    items.close()  # type: ignore[attr-defined]
    assert not reader.is_running()
    assert check_dataset(large, "sft", max_rows=1).rows == 1
    assert not readers()


def test_the_process_holds_no_secret_and_little_else(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRAINYARD_MASTER_KEY", "HF_TOKEN", "ANYTHING"):
        monkeypatch.setenv(name, "s3cret")
    items = read_rows(large)
    next(items)
    (reader,) = readers()
    assert "s3cret" not in str(reader.environ())
    assert reader.rlimit(psutil.RLIMIT_AS)[0] == Limits().reader_bytes
    assert reader.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert reader.rlimit(psutil.RLIMIT_CPU)[0] < 3600
    for number in (signal.SIGTERM, signal.SIGINT):
        reader.send_signal(number)  # meant for the process that reads on
    assert sum(1 for _ in items) == 19_999


def test_a_process_that_is_killed_ends_the_file_with_a_finding(large: Path) -> None:
    items = read_rows(large)
    next(items)
    (reader,) = readers()
    reader.kill()
    rest = list(items)
    assert all(isinstance(item, Row) for item in rest[:-1])
    last = rest[-1]
    assert isinstance(last, Finding)
    assert (last.code, last.row) == ("parquet_error", len(rest) + 1)
    assert "SIGKILL" in last.message_en


def test_a_process_that_hangs_is_ended_at_its_deadline(large: Path) -> None:
    items = read_rows(large, Limits(reader_seconds=12))
    next(items)
    (reader,) = readers()
    reader.suspend()
    began = time.monotonic()
    *_, last = items
    assert time.monotonic() - began < SECONDS
    assert isinstance(last, Finding)
    assert "took too long" in last.message_en
    assert not reader.is_running()


def test_the_process_ends_with_its_reader_even_while_it_does_nothing(large: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from shared.preflight.rows import read_rows; "
        "items = read_rows(Path(sys.argv[1])); next(items); print('read', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, large],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"read\n"
        (reader,) = readers(parent.pid)
        reader.suspend()  # it cannot notice anything by itself now
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(SECONDS)
        wait_gone(reader)


def test_memory_is_bounded(tmp_path: Path, large: Path) -> None:
    (finding,) = read_rows(large, Limits(reader_bytes=16 << 20))
    assert isinstance(finding, Finding)
    assert finding.code == "dataset_not_readable"
    path = tmp_path / "page.parquet"
    text = "".join(chr(33 + n % 90) for n in range(1 << 20))
    pq.write_table(
        pa.table({"prompt": [text + str(n) for n in range(200)]}), path, use_dictionary=False
    )
    *_, last = read_rows(path, Limits(reader_bytes=380 << 20, unpacked_ratio=10_000))
    assert isinstance(last, Finding)
    assert last.code == "parquet_error"


def test_one_large_row_is_refused_and_the_rows_before_it_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    limits = Limits(batch_bytes=1 << 20)
    pq.write_table(
        pa.table({"prompt": ["a", "b", "x" * (largest_frame(limits) + 1), "c"]}),
        path,
        use_dictionary=False,
    )
    *before, last = read_rows(path, limits)
    assert [item.values["prompt"] for item in before if isinstance(item, Row)] == ["a", "b"]
    assert isinstance(last, Finding)
    assert (last.code, last.row) == ("parquet_too_large", 3)


def test_a_process_that_does_not_start_is_no_fault_of_the_file(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    (finding,) = read_rows(large)
    assert isinstance(finding, Finding)
    assert finding.code == "dataset_not_readable"
    monkeypatch.undo()
    monkeypatch.setattr(parquet_reader, "_ROOT", "/nonexistent")
    monkeypatch.setattr(parquet_reader, "_START", "raise SystemExit(3)")
    (finding,) = read_rows(large)
    assert isinstance(finding, Finding)
    assert finding.code == "dataset_not_readable"
    assert "code 3" in finding.message_en


def test_what_is_sent_instead_of_rows_is_a_finding(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for frame in ("b'R', b'[1]'", "b'T', b'x'", "b'F', b'{}'", "b'?', b''", "b'R', b'[' * 100000"):
        monkeypatch.setattr(
            parquet_reader,
            "_START",
            "import os, struct; send = lambda k, d: os.write(1, struct.pack('>cI', k, len(d)) + d); "
            f"send(b'S', b''); send({frame})",
        )
        (finding,) = read_rows(large)
        assert isinstance(finding, Finding)
        assert finding.code == "parquet_error", frame
