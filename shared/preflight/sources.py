"""Opening a dataset file safely: what kind of file it is, and whether it may be read at all."""

import difflib
import errno
import os
import stat
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Literal

from shared.preflight.finding import Finding, shown

Format = Literal["jsonl", "json", "csv", "parquet"]
FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
ALLOWED = ".jsonl, .json, .csv, .parquet"
FIELD = "train_data_path"

_COMPRESSED = {".gz", ".tgz", ".zip", ".bz2", ".xz", ".zst", ".tar", ".7z", ".rar", ".lz4"}
_SCRIPTS = {".py", ".pyc", ".sh", ".ipynb", ".js", ".pl", ".rb", ".so"}
_PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib"}
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_SIBLINGS_LOOKED_AT = 2000


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one file; a value beyond one is a finding, never a large allocation."""

    file_bytes: int = 8 << 30
    line_bytes: int = 8 << 20
    depth: int = 64
    row_group_bytes: int = 1 << 30
    row_groups: int = 100_000
    footer_bytes: int = 64 << 20
    batch_bytes: int = 32 << 20
    unpacked_ratio: int = 200
    """Unpacked bytes for one packed byte; text packs to about a tenth, a bomb to a thousandth."""
    unpacked_free: int = 64 << 20
    """Unpacked bytes that are read whatever the ratio is."""
    columns: int = 1000
    reader_bytes: int = 4 << 30
    """Address space of the process that reads a Parquet file: a row group packed and unpacked, twice."""
    reader_seconds: float = 120.0
    """Longest wait for the next rows of a Parquet file; one that needs longer is not read on."""


@dataclass(slots=True)
class Source:
    """An open regular file with a known format."""

    path: Path
    format: Format
    stream: "BufferedReader[FileIO]"
    size: int


def open_source(path: Path, limits: Limits) -> Source | Finding:
    """Open `path` for reading without following a last link; a finding says why it cannot be used."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        return _open_failure(path, error)
    info = os.fstat(descriptor)
    named = _format_by_name(path)
    refusal = _kind_failure(path, info.st_mode)
    if refusal is None:
        refusal = named if isinstance(named, Finding) else _size_failure(path, info.st_size, limits)
    if refusal is not None or isinstance(named, Finding):
        os.close(descriptor)
        return refusal or named  # type: ignore[return-value]  # one of them is a finding here
    stream = BufferedReader(FileIO(descriptor, "rb"), buffer_size=1 << 20)
    wrong = _content_failure(path, named, stream.peek(8)[:8])
    if wrong is not None:
        stream.close()
        return wrong
    return Source(path, named, stream, info.st_size)


def _format_by_name(path: Path) -> Format | Finding:
    suffix = path.suffix.lower()
    if suffix in FORMATS:
        return FORMATS[suffix]
    name = shown(path.name)
    if suffix in _COMPRESSED:
        return Finding(
            "compressed_file",
            FIELD,
            f"{name} is compressed. Unpack it and give the unpacked file ({ALLOWED}).",
            f"{name} 是压缩文件。请先解压，再填写解压后的文件（{ALLOWED}）。",
            value=name,
            allowed=ALLOWED,
        )
    if suffix in _SCRIPTS:
        return Finding(
            "script_not_allowed",
            FIELD,
            f"{name} is a program. A dataset is data only; loader scripts are never run. Use {ALLOWED}.",
            f"{name} 是程序文件。数据集只能是数据，加载脚本不会被执行。请使用 {ALLOWED}。",
            value=name,
            allowed=ALLOWED,
        )
    if suffix in _PICKLES:
        return Finding(
            "unsafe_format",
            FIELD,
            f"{name} can carry code that runs when it is opened. Convert it to {ALLOWED}.",
            f"{name} 这种格式打开时可能执行代码。请转换为 {ALLOWED}。",
            value=name,
            allowed=ALLOWED,
        )
    ending_en = f"the ending {shown(suffix)}" if suffix else "no ending"
    return Finding(
        "unknown_extension",
        FIELD,
        f"{name} has {ending_en}; a dataset file ends in one of {ALLOWED}. Rename or convert it.",
        f"{name} 的扩展名无法识别；数据集文件的扩展名应为 {ALLOWED} 之一。请改名或转换格式。",
        value=name,
        allowed=ALLOWED,
    )


def _open_failure(path: Path, error: OSError | ValueError) -> Finding:
    where = shown(str(path), 200)
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOENT, errno.ENOTDIR):
        near = _similar(path)
        hint_en = (
            f" Did you mean {near}?"
            if near
            else " Check the path; it is looked up where the job runs."
        )
        hint_zh = f"是否想填 {near}？" if near else "请检查路径，它会在运行任务的主机上查找。"
        return Finding(
            "dataset_not_found",
            FIELD,
            f"There is no file {where}.{hint_en}",
            f"找不到文件 {where}。{hint_zh}",
            value=where,
            allowed=near,
        )
    if number == errno.ELOOP:
        return Finding(
            "symlink_refused",
            FIELD,
            f"{where} is a symbolic link. Give the path of the file that it points to.",
            f"{where} 是符号链接。请填写它所指向的真实文件路径。",
            value=where,
        )
    if number in (errno.EACCES, errno.EPERM):
        return Finding(
            "dataset_not_readable",
            FIELD,
            f"{where} may not be read by the user that runs Trainyard. Change its permissions.",
            f"运行 Trainyard 的用户无权读取 {where}。请修改文件权限。",
            value=where,
        )
    why = shown(os.strerror(number) if number else str(error))
    return Finding(
        "dataset_not_readable",
        FIELD,
        f"{where} cannot be opened: {why}.",
        f"无法打开 {where}：{why}。",
        value=where,
    )


def _similar(path: Path) -> str | None:
    try:
        names = [
            entry.name
            for entry, _ in zip(path.parent.iterdir(), range(_SIBLINGS_LOOKED_AT), strict=False)
        ]
    except (OSError, ValueError):
        return None
    match = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return shown(match[0]) if match else None


def _kind_failure(path: Path, mode: int) -> Finding | None:
    where = shown(str(path), 200)
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        return Finding(
            "dataset_is_directory",
            FIELD,
            f"{where} is a folder. Give one file inside it ({ALLOWED}).",
            f"{where} 是文件夹。请填写其中的一个文件（{ALLOWED}）。",
            value=where,
            allowed=ALLOWED,
        )
    return Finding(
        "not_a_regular_file",
        FIELD,
        f"{where} is not a regular file (a device, pipe or socket). Give an ordinary file ({ALLOWED}).",
        f"{where} 不是普通文件（设备、管道或套接字）。请填写普通文件（{ALLOWED}）。",
        value=where,
        allowed=ALLOWED,
    )


def _size_failure(path: Path, size: int, limits: Limits) -> Finding | None:
    name = shown(path.name)
    if size == 0:
        return empty_dataset(name)
    if size > limits.file_bytes:
        have, most = f"{size / 1e9:.1f} GB", f"{limits.file_bytes / 1e9:.1f} GB"
        return Finding(
            "file_too_large",
            FIELD,
            f"{name} has {have}; one dataset file may have {most}. Split it or take a sample.",
            f"{name} 大小为 {have}，单个数据集文件最大 {most}。请拆分或抽样。",
            value=have,
            allowed=f"<= {most}",
        )
    return None


def empty_dataset(name: str) -> Finding:
    """The finding for a file without a single row."""
    return Finding(
        "dataset_empty",
        FIELD,
        f"{name} holds no rows. Put at least one row into it.",
        f"{name} 里没有任何数据。请至少写入一条数据。",
        value=name,
    )


def _content_failure(path: Path, named: Format, head: bytes) -> Finding | None:
    name = shown(path.name)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return Finding(
                "compressed_file",
                FIELD,
                f"{name} is named {path.suffix} but holds {kind} data. Unpack it first.",
                f"{name} 的扩展名是 {path.suffix}，内容却是 {kind} 压缩数据。请先解压。",
                value=kind,
                allowed=ALLOWED,
            )
    if (head.startswith(b"PAR1")) != (named == "parquet"):
        en = (
            "is not a Parquet file"
            if named == "parquet"
            else "is a Parquet file with another ending"
        )
        zh = "不是 Parquet 文件" if named == "parquet" else "其实是 Parquet 文件"
        return Finding(
            "wrong_format",
            FIELD,
            f"{name} {en}. Rename it so that its ending tells its format.",
            f"{name} {zh}。请改成与内容一致的扩展名。",
            value=name,
            allowed=ALLOWED,
        )
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Finding(
            "invalid_utf8",
            FIELD,
            f"{name} is UTF-16. Save it as UTF-8.",
            f"{name} 是 UTF-16 编码。请另存为 UTF-8。",
            line=1,
            value="UTF-16",
            allowed="UTF-8",
        )
    return None
