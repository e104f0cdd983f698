"""Rows of a .parquet file, batch by batch, with caps on what its footer declares before anything is read.

Only for the process of parquet_worker: the Parquet library ends the process on some damaged files.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared.preflight.finding import Finding, shown
from shared.preflight.parquet_findings import bomb, damaged, too_large
from shared.preflight.parquet_wire import Rows
from shared.preflight.sources import FIELD, Limits, Source

_BATCH_ROWS = 64
_BROKEN = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, TypeError, KeyError)


def read(source: Source, limits: Limits) -> Iterator[Rows | Finding]:
    """The rows of an open Parquet file, a batch at a time; a damaged or oversized one ends with its finding."""
    refusal = _footer_failure(source, limits)
    if refusal is not None:
        yield refusal
        return
    row = 0
    try:
        file = pq.ParquetFile(
            source.stream,
            thrift_string_size_limit=limits.footer_bytes,
            thrift_container_size_limit=1_000_000,
        )
        refusal = _declared_failure(file.metadata, limits) or _schema_failure(
            file.schema_arrow, limits
        )
        if refusal is not None:
            yield refusal
            return
        unpacked = 0
        for batch in _batches(source, file, limits):
            if isinstance(batch, Finding):
                yield batch
                return
            unpacked += batch.nbytes
            if unpacked > limits.unpacked_free + limits.unpacked_ratio * source.size:
                yield bomb(unpacked, source.size)
                return
            rows: Rows = batch.to_pylist()
            yield rows
            row += len(rows)
    except _BROKEN as error:
        yield damaged(str(error) or type(error).__name__, row)


def _batches(source: Source, file: Any, limits: Limits) -> Iterator[Any]:
    """Yield the row groups in batches that stay below `batch_bytes`, or a finding for a value that would not.

    A column may hold one long text in its dictionary and name it in every row, so a batch is cut by the longest entry
    of the dictionaries, which a look at one row of the group reveals.
    """
    leaves = [file.schema.column(at) for at in range(len(file.schema))]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    looker = pq.ParquetFile(source.stream, metadata=file.metadata, read_dictionary=texts)
    for group in range(file.metadata.num_row_groups):
        if file.metadata.row_group(group).num_rows == 0:
            continue
        ahead = looker.iter_batches(batch_size=1, row_groups=[group], use_threads=False)
        first = next(ahead, None)
        if first is None:
            raise ValueError("a row group declares rows that it does not hold")
        longest = sum(_longest(column) for column in first.columns)
        if longest > limits.batch_bytes:
            yield too_large(f"a row of {longest:,} bytes", limits.batch_bytes)
            return
        rows = max(1, min(_BATCH_ROWS, limits.batch_bytes // max(1, longest)))
        yield from file.iter_batches(batch_size=rows, row_groups=[group], use_threads=False)


def _longest(column: Any) -> int:
    """Return the bytes of the longest texts that the dictionaries of this column hold, else of what was read."""
    if pa.types.is_dictionary(column.type):
        return int(pc.max(pc.binary_length(column.dictionary)).as_py() or 0)
    if pa.types.is_struct(column.type) or pa.types.is_list(column.type):
        inner = column.flatten()
        return sum(_longest(part) for part in (inner if isinstance(inner, list) else [inner]))
    return int(column.nbytes)


def _footer_failure(source: Source, limits: Limits) -> Finding | None:
    if source.size < 12:
        return damaged("the file ends before its footer", 0)
    source.stream.seek(-8, 2)
    tail = source.stream.read(8)
    source.stream.seek(0)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > source.size - 12:
        return damaged("the footer is missing or cut off", 0)
    return (
        too_large(f"a footer of {length:,} bytes", limits.footer_bytes)
        if length > limits.footer_bytes
        else None
    )


def _declared_failure(metadata: Any, limits: Limits) -> Finding | None:
    if metadata.num_row_groups > limits.row_groups:
        return too_large(f"{metadata.num_row_groups:,} row groups", limits.row_groups)
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        size = int(group.total_byte_size)
        if size > limits.row_group_bytes or size < 0:
            return too_large(f"a row group of {size:,} bytes unpacked", limits.row_group_bytes)
        packed = sum(
            max(0, int(group.column(at).total_compressed_size)) for at in range(group.num_columns)
        )
        if size > limits.unpacked_free + limits.unpacked_ratio * packed:
            return bomb(size, packed)
    return None


def _schema_failure(schema: Any, limits: Limits) -> Finding | None:
    if len(schema) > limits.columns:
        return too_large(f"{len(schema):,} columns", limits.columns)
    for column in schema:
        if _holds_binary(column.type, limits.depth):
            name = shown(column.name)
            return Finding(
                "binary_column",
                FIELD,
                f'The column "{name}" holds bytes ({shown(str(column.type))}), which may be pickled objects. Store text, or drop the column.',
                f"列“{name}”存放的是二进制数据（{shown(str(column.type))}），可能是序列化对象。请改存文本或删除该列。",
                column=name,
                value=shown(str(column.type)),
                allowed="text, numbers, lists, structs",
            )
    return None


def _holds_binary(kind: Any, depth: int) -> bool:
    if depth <= 0:
        return True
    if (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    ):
        return True
    if pa.types.is_dictionary(kind):
        return _holds_binary(kind.value_type, depth - 1)
    return any(_holds_binary(kind.field(at).type, depth - 1) for at in range(kind.num_fields))
