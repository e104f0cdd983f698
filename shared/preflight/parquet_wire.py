"""What the process that reads a Parquet file sends to the one that asked: frames of JSON, bounded in size.

JSON, because the sender handles untrusted bytes in native code: nothing it could be made to send runs code here.
"""

import json
import struct
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from secrets import token_hex
from typing import Any

from shared.preflight.sources import Limits

HEADER = struct.Struct(">cI")
"""Kind of a frame and the bytes of its JSON."""
STARTED, ROWS, TYPED_ROWS, FINDING, END = b"S", b"R", b"T", b"F", b"E"
Rows = list[dict[str, object]]
_SMALL_FRAME = 64 << 10
"""Enough for any finding."""

_MARK_BYTES = 8
_BUILD: dict[str, Callable[[str], object]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda text: timedelta(seconds=float(text)),
    "Decimal": Decimal,
}


def largest_frame(limits: Limits) -> int:
    """Return the bytes of JSON that a frame, and so a row, may have; quotes and line ends in a text count twice."""
    return 2 * limits.batch_bytes + _SMALL_FRAME


def encode_rows(rows: Rows) -> tuple[bytes, bytes]:
    """Return the kind of frame and its data. Raises ValueError for text that is not Unicode.

    A value that JSON does not know becomes an object whose first field has a random name, sent before the JSON: no
    file can hold one that is taken for it.
    """
    mark = token_hex(_MARK_BYTES)
    kind, head = ROWS, b""

    def typed(value: object) -> object:
        nonlocal kind, head
        kind, head = TYPED_ROWS, mark.encode()
        return _fields(value, mark)

    encoder = json.JSONEncoder(
        ensure_ascii=False, check_circular=False, separators=(",", ":"), default=typed
    )
    data = encoder.encode(rows).encode()
    return kind, head + data


def _fields(value: object, mark: str) -> object:
    match value:
        case datetime():
            return {mark: "datetime", "text": value.isoformat()}
        case date():
            return {mark: "date", "text": value.isoformat()}
        case time():
            return {mark: "time", "text": value.isoformat()}
        case timedelta():
            return {mark: "timedelta", "text": repr(value.total_seconds())}
        case Decimal():
            return {mark: "Decimal", "text": str(value)}
        case _:
            return value.tolist() if hasattr(value, "tolist") else str(value)


def decode_rows(kind: bytes, data: bytes) -> Rows:
    """Return the rows of a frame. Raises ValueError, TypeError or ArithmeticError where it holds anything else."""
    if kind == TYPED_ROWS:
        mark, data = data[: 2 * _MARK_BYTES].decode(), data[2 * _MARK_BYTES :]
        rows: Rows = json.loads(data, object_hook=partial(_value, mark=mark))
    else:
        rows = json.loads(data)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("a frame without rows")
    return rows


def _value(fields: dict[str, Any], mark: str) -> object:
    return _BUILD[fields[mark]](fields["text"]) if mark in fields else fields
