"""Rows of a .parquet file, batch by batch, with caps on what its footer declares before anything is read."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared.preflight.finding import Finding, Place, shown
from shared.preflight.json_rows import Parsed
from shared.preflight.sources import FIELD, Limits, Source

_BATCH_ROWS = 64
_BROKEN = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, TypeError, KeyError)


def read(source: Source, limits: Limits) -> Iterator[Parsed]:
    """The rows of an open Parquet file; a damaged or oversized one ends with its finding."""
    refusal = _footer_failure(source, limits)
    if refusal is not None:
        yield Place(), refusal
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
            yield Place(), refusal
            return
        unpacked = 0
        for batch in _batches(source, file, limits):
            if isinstance(batch, Finding):
                yield Place(row=row + 1), batch
                return
            unpacked += batch.nbytes
            if unpacked > limits.unpacked_free + limits.unpacked_ratio * source.size:
                yield Place(row=row + 1), _bomb(unpacked, source.size)
                return
            for values in batch.to_pylist():
                row += 1
                yield Place(row=row), dict(values)
    except _BROKEN as error:
        yield Place(row=row + 1), _damaged(error, row)


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
        first = next(looker.iter_batches(batch_size=1, row_groups=[group], use_threads=False))
        longest = sum(_longest(column) for column in first.columns)
        if longest > limits.batch_bytes:
            yield _too_large(f"a row of {longest:,} bytes", limits.batch_bytes)
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
        return _damaged(ValueError("the file ends before its footer"), 0)
    source.stream.seek(-8, 2)
    tail = source.stream.read(8)
    source.stream.seek(0)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > source.size - 12:
        return _damaged(ValueError("the footer is missing or cut off"), 0)
    return (
        _too_large(f"a footer of {length:,} bytes", limits.footer_bytes)
        if length > limits.footer_bytes
        else None
    )


def _declared_failure(metadata: Any, limits: Limits) -> Finding | None:
    if metadata.num_row_groups > limits.row_groups:
        return _too_large(f"{metadata.num_row_groups:,} row groups", limits.row_groups)
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        size = int(group.total_byte_size)
        if size > limits.row_group_bytes or size < 0:
            return _too_large(f"a row group of {size:,} bytes unpacked", limits.row_group_bytes)
        packed = sum(
            max(0, int(group.column(at).total_compressed_size)) for at in range(group.num_columns)
        )
        if size > limits.unpacked_free + limits.unpacked_ratio * packed:
            return _bomb(size, packed)
    return None


def _schema_failure(schema: Any, limits: Limits) -> Finding | None:
    if len(schema) > limits.columns:
        return _too_large(f"{len(schema):,} columns", limits.columns)
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


def _too_large(what: str, most: int) -> Finding:
    return Finding(
        "parquet_too_large",
        FIELD,
        f"The Parquet file declares {what}; at most {most:,} is read. Write it again with smaller row groups.",
        f"该 Parquet 文件声明了 {what}，超过上限 {most:,}。请用更小的 row group 重新写出。",
        value=what,
        allowed=f"<= {most:,}",
    )


def _bomb(unpacked: int, packed: int) -> Finding:
    return Finding(
        "parquet_too_large",
        FIELD,
        f"The Parquet file unpacks from {packed:,} bytes to more than {unpacked:,}, as no text does. Drop repeated rows, or write it without compression.",
        f"该 Parquet 文件的 {packed:,} 字节会解压为 {unpacked:,} 字节以上，正常文本不会如此。请删除重复的行，或不压缩重新写出。",
        value=f"{unpacked:,}",
        allowed="<= 200 : 1",
    )


def _damaged(error: Exception, rows: int) -> Finding:
    reason = shown(str(error) or type(error).__name__, 160)
    place = Place(row=rows + 1)
    return Finding(
        "parquet_error",
        FIELD,
        f"The Parquet file is damaged after {rows} rows ({reason}). Write it again.",
        f"Parquet 文件在第 {rows} 条之后损坏（{reason}）。请重新写出。",
        row=place.row,
        value=reason,
    )
