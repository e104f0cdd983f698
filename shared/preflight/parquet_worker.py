"""The process that reads one Parquet file, so that no file can end or fill the api, the agent or a trainer.

Started by parquet_reader with the open file as standard input; rows and findings go to standard output. It ends with
the process that asked, however that one ends.
"""

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from io import BufferedReader, FileIO
from pathlib import Path

from shared.preflight.finding import Finding
from shared.preflight.parquet_findings import too_large
from shared.preflight.parquet_wire import (
    END,
    FINDING,
    HEADER,
    STARTED,
    Rows,
    encode_rows,
    largest_frame,
)
from shared.preflight.sources import Limits, Source

_CPU_SECONDS = 300
_BYTES_A_CPU_SECOND = 256 << 10
_PIPE_BYTES = 1 << 20
"""Room for the next rows while the reader looks at those before."""


def main(lifeline: str, bounds: str) -> None:
    """Read the file on standard input and send what it holds to standard output.

    `lifeline` is the number of an open pipe's end, `bounds` are Limits as JSON.
    """
    _end_with_reader(int(lifeline))
    limits = Limits(**json.loads(bounds))
    size = os.fstat(0).st_size
    _bound(limits.reader_bytes, _CPU_SECONDS + size // _BYTES_A_CPU_SECOND)
    sys.modules["numpy"] = None  # type: ignore[assignment]  # the library does without: half of the start
    from shared.preflight import parquet_rows  # noqa: PLC0415 - with the bounds in force

    del sys.modules["numpy"]
    out = FileIO(1, "wb", closefd=False)
    with contextlib.suppress(OSError):
        fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    _send(out, STARTED, b"")
    with BufferedReader(FileIO(0, "rb"), buffer_size=1 << 20) as stream:
        source = Source(Path(), "parquet", stream, size)
        _send_all(parquet_rows.read(source, limits), out, largest_frame(limits))


class _RowTooLarge(Exception):
    """One row, by number, of more bytes than a frame may have."""


def _send_all(items: Iterable[Rows | Finding], out: FileIO, most: int) -> None:
    """Send rows in frames, findings in between, and the end; a row larger than a frame is the end."""
    sent = 0
    try:
        for item in items:
            if isinstance(item, Finding):
                _send_finding(out, item)
            else:
                _send_rows(out, item, sent, most)
                sent += len(item)
    except _RowTooLarge as error:
        row, size = error.args
        _send_finding(out, replace(too_large(f"a row of {size:,} bytes", most), row=row))
    _send(out, END, b"")


def _send_rows(out: FileIO, rows: Rows, before: int, most: int) -> None:
    """Send rows together, or fewer at a time where they are large; `before` were sent already."""
    kind, data = encode_rows(rows)
    if len(data) <= most:
        _send(out, kind, data)
    elif len(rows) > 1:
        half = len(rows) // 2
        _send_rows(out, rows[:half], before, most)
        _send_rows(out, rows[half:], before + half, most)
    else:
        raise _RowTooLarge(before + 1, len(data))


def _send_finding(out: FileIO, finding: Finding) -> None:
    _send(out, FINDING, json.dumps(asdict(finding)).encode())


def _send(out: FileIO, kind: bytes, data: bytes) -> None:
    rest = memoryview(HEADER.pack(kind, len(data)) + data)
    while rest:
        rest = rest[out.write(rest) or 0 :]


def _end_with_reader(lifeline: int) -> None:
    """Let the kernel kill this process once the reader's end of `lifeline` is closed, whatever runs here then."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            number, signal.SIG_IGN
        )  # meant for the reader, which may go on reading for a while
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    if select.select([lifeline], [], [], 0)[0]:
        sys.exit(1)


def _bound(memory: int, seconds: int) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (least, least))
