"""What the reading of a .parquet file has to say."""

from shared.preflight.finding import Finding, Place, shown
from shared.preflight.sources import FIELD


def too_large(what: str, most: int) -> Finding:
    """Say that the file declares more of something than is read."""
    return Finding(
        "parquet_too_large",
        FIELD,
        f"The Parquet file declares {what}; at most {most:,} is read. Write it again with smaller row groups.",
        f"该 Parquet 文件声明了 {what}，超过上限 {most:,}。请用更小的 row group 重新写出。",
        value=what,
        allowed=f"<= {most:,}",
    )


def bomb(unpacked: int, packed: int) -> Finding:
    """Say that the file unpacks to more bytes than any text does."""
    return Finding(
        "parquet_too_large",
        FIELD,
        f"The Parquet file unpacks from {packed:,} bytes to more than {unpacked:,}, as no text does. Drop repeated rows, or write it without compression.",
        f"该 Parquet 文件的 {packed:,} 字节会解压为 {unpacked:,} 字节以上，正常文本不会如此。请删除重复的行，或不压缩重新写出。",
        value=f"{unpacked:,}",
        allowed="<= 200 : 1",
    )


def damaged(why: str, rows: int) -> Finding:
    """Say that the file can be read no further than `rows` rows, and why."""
    reason = shown(why, 160)
    place = Place(row=rows + 1)
    return Finding(
        "parquet_error",
        FIELD,
        f"The Parquet file is damaged after {rows} rows ({reason}). Write it again.",
        f"Parquet 文件在第 {rows} 条之后损坏（{reason}）。请重新写出。",
        row=place.row,
        value=reason,
    )


def not_started(why: str) -> Finding:
    """Say that the process which reads Parquet files did not start; nothing is known about the file."""
    reason = shown(why, 160)
    return Finding(
        "dataset_not_readable",
        FIELD,
        f"The Parquet file was not read: the process that reads it did not start ({reason}). Try again; if it stays so, check memory and processes of the host.",
        f"未能读取该 Parquet 文件：读取进程没有启动（{reason}）。请重试；若仍失败，请检查主机的内存与进程数。",
        value=reason,
    )
