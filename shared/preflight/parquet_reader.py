"""Rows of a .parquet file, read in a process of its own: the Parquet library ends its process on some damaged files.

Its footer alone can do that, with metadata that is well formed and wrong. So no process that has anything else to do
opens such a file; the one that does holds no secret, has little memory and time, and ends with whoever asked.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from shared.preflight.finding import Finding, Place
from shared.preflight.json_rows import Parsed
from shared.preflight.parquet_findings import damaged, not_started
from shared.preflight.parquet_wire import (
    END,
    FINDING,
    HEADER,
    ROWS,
    STARTED,
    TYPED_ROWS,
    decode_rows,
    largest_frame,
)
from shared.preflight.sources import Limits, Source

_ROOT = str(Path(__file__).resolve().parents[2])
_START = "import sys; sys.path.insert(0, sys.argv[1]); from shared.preflight.parquet_worker import main; main(*sys.argv[2:])"
_KEPT = ("PATH", "LD_LIBRARY_PATH", "TZ", "TZDIR")
"""All that the reading process inherits of the environment."""
_ADDED = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # holds no address space that it does not use
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_END_SECONDS = 10.0


class _Ended(Exception):
    """The reading process sends nothing more that could be used; the text says why."""


def read(source: Source, limits: Limits) -> Iterator[Parsed]:
    """The rows of an open Parquet file; a damaged or oversized one ends with its finding."""
    try:
        process, lifeline = _start(source, limits)
    except OSError as error:
        yield Place(), not_started(os.strerror(error.errno) if error.errno else str(error))
        return
    try:
        yield from _received(process, limits)
    finally:
        os.close(lifeline)
        _end(process)


def _start(source: Source, limits: Limits) -> tuple[subprocess.Popen[bytes], int]:
    """Start the reading process; also return the descriptor at whose closing the kernel kills it."""
    theirs, lifeline = os.pipe()
    try:
        bounds = json.dumps(dataclasses.asdict(limits))
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, _ROOT, str(theirs), bounds],
            stdin=source.stream,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=[theirs],
            cwd="/",
            env={k: v for k, v in os.environ.items() if k in _KEPT} | _ADDED,
        )
    except BaseException:
        os.close(lifeline)
        raise
    finally:
        os.close(theirs)
    return process, lifeline


def _received(process: subprocess.Popen[bytes], limits: Limits) -> Iterator[Parsed]:
    """Yield what the process sends; where it ends without having said so, that is the last finding."""
    row = 0
    started = False
    try:
        while True:
            kind, data = _frame(process, limits)
            if kind in (ROWS, TYPED_ROWS):
                for values in decode_rows(kind, data):
                    row += 1
                    yield Place(row=row), values
            elif kind == FINDING:
                finding = Finding(**json.loads(data))
                yield Place(row=finding.row), finding
            elif kind == STARTED:
                started = True
            elif kind == END:
                return
            else:
                raise _Ended("its parser was overwritten")
    except _Ended as error:
        yield Place(row=row + 1), damaged(str(error), row) if started else not_started(str(error))
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        yield Place(row=row + 1), damaged("its parser was overwritten", row)


def _frame(process: subprocess.Popen[bytes], limits: Limits) -> tuple[bytes, bytes]:
    deadline = time.monotonic() + limits.reader_seconds
    kind, size = HEADER.unpack(_exactly(process, HEADER.size, deadline))
    if size > largest_frame(limits):
        raise _Ended("its parser was overwritten")
    return kind, _exactly(process, size, deadline)


def _exactly(process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while size:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise _Ended("reading on took too long")
        part = os.read(pipe, min(size, 1 << 20))
        if not part:
            raise _Ended(_way_to_end(process))
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _way_to_end(process: subprocess.Popen[bytes]) -> str:
    """Say how the process ended by itself; its end of the pipe is closed already."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    code = process.returncode
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"its parser ended with {signal.Signals(-code).name}"
    return f"its parser ended with code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    if process.stdout is not None:
        process.stdout.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
