"""The header of a safetensors file, read and checked without loading a weight (format: 8-byte length, JSON, data)."""

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.preflight.finding import Finding, shown
from shared.preflight.json_text import too_deep

FIELD = "model_path"
MOST_HEADER = 100_000_000  # the bound of the reference implementation
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """Kind and shape of one stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of one file and the bytes of their data."""

    tensors: Mapping[str, Tensor]
    data_bytes: int


class _Corrupt(Exception):  # never leaves this module
    """What is wrong, in English and Chinese."""

    def __init__(self, en: str, zh: str) -> None:
        super().__init__(en)
        self.en, self.zh = en, zh


def read_header(path: Path) -> Header | Finding:
    """The header of `path`, or `checkpoint_corrupt` with the file and the reason; never raises."""
    try:
        with path.open("rb") as stream:
            info = path.stat()
            if not stat.S_ISREG(info.st_mode):
                raise _Corrupt("it is not a regular file", "不是普通文件")
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            _check_length(info.st_size, len(prefix), length)
            return _parsed(stream.read(length), info.st_size - 8 - length)
    except _Corrupt as corrupt:
        return corrupt_file(path.name, corrupt.en, corrupt.zh)
    except (OSError, ValueError) as error:
        return corrupt_file(
            path.name, f"it cannot be read: {shown(str(error))}", f"无法读取：{shown(str(error))}"
        )


def corrupt_file(name: str, en: str, zh: str) -> Finding:
    """The finding for a weights file that is damaged."""
    return Finding(
        "checkpoint_corrupt",
        FIELD,
        f"{shown(name)} is damaged: {en}. Copy or download it again.",
        f"{shown(name)} 已损坏：{zh}。请重新复制或下载。",
        value=shown(name),
    )


def _check_length(size: int, prefix: int, length: int) -> None:
    if size == 0:
        raise _Corrupt("it is empty", "文件为空")
    if prefix < 8:
        raise _Corrupt("it is cut off inside its first 8 bytes", "文件不足 8 字节")
    if length > MOST_HEADER:
        raise _Corrupt("its header is too large", "文件头过大")
    if length > size - 8:
        raise _Corrupt("it is cut off inside its header", "文件头不完整")


def _parsed(raw: bytes, data_bytes: int) -> Header:
    try:
        text = raw.decode("utf-8")
        if too_deep(text, 8):
            raise _Corrupt("its header nests too deep", "文件头嵌套过深")
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Corrupt("its header is not JSON", "文件头不是 JSON") from error
    if not isinstance(entries, dict):
        raise _Corrupt("its header is not an object", "文件头不是对象")
    tensors: dict[str, Tensor] = {}
    ranges: list[tuple[int, int]] = []
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        tensors[name], span = _tensor(name, entry)
        ranges.append(span)
    _check_ranges(sorted(ranges), data_bytes)
    return Header(tensors, data_bytes)


def _tensor(name: str, entry: object) -> tuple[Tensor, tuple[int, int]]:
    label = shown(name)
    if not isinstance(entry, dict):
        raise _Corrupt(f"the entry of {label} is not an object", f"{label} 的条目不是对象")
    dtype, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _Corrupt(
            f"{label} has the unknown dtype {shown(dtype, 20)}",
            f"{label} 的 dtype {shown(dtype, 20)} 无法识别",
        )
    if not _are_sizes(shape) or not _are_sizes(span) or len(span) != 2 or span[0] > span[1]:  # type: ignore[arg-type, index]
        raise _Corrupt(f"{label} has a wrong shape or wrong offsets", f"{label} 的形状或偏移不正确")
    tensor = Tensor(dtype, tuple(shape))  # type: ignore[arg-type]
    if tensor.size * _BITS[dtype] != (span[1] - span[0]) * 8:  # type: ignore[index]
        raise _Corrupt(f"the size of {label} does not match its shape", f"{label} 的大小与形状不符")
    return tensor, (span[0], span[1])  # type: ignore[index]


def _are_sizes(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 60 for n in value)
    )


def _check_ranges(ranges: list[tuple[int, int]], data_bytes: int) -> None:
    at = 0
    for start, end in ranges:
        if start != at:
            raise _Corrupt("its tensors overlap or leave holes", "张量数据重叠或有空洞")
        at = end
    if at > data_bytes:
        raise _Corrupt(
            f"it is cut off: {data_bytes:,} of {at:,} bytes of data",
            f"文件被截断：数据应有 {at:,} 字节，实际 {data_bytes:,}",
        )
    if at < data_bytes:
        raise _Corrupt(
            f"it holds {data_bytes - at:,} bytes too many", f"文件多出 {data_bytes - at:,} 字节"
        )
