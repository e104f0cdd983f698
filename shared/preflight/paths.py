"""Which paths a job may name: anything readable on a loopback-only stack, else only what lies under the data roots."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.preflight.finding import Finding, shown

ROOTS_SETTING = "TRAINYARD_DATA_ROOTS"
_HUB_ID = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,95})/[A-Za-z0-9](?:[A-Za-z0-9._-]{0,95})(?:@[A-Za-z0-9._/-]{1,100})?"
)
_FILE_ENDINGS = (
    ".jsonl",
    ".json",
    ".csv",
    ".parquet",
    ".txt",
    ".gz",
    ".zip",
    ".py",
    ".yaml",
    ".yml",
)


@dataclass(frozen=True, slots=True)
class Refusal(Finding):
    """A path that may not be used; it is a `Finding`, and reads like one."""


def resolve_allowed(
    path: Path | str,
    roots: Sequence[Path | str] | None,
    *,
    base: Path | str | None = None,
    field: str = "train_data_path",
) -> Path | Refusal:
    """The real path (`..`, `~` and links resolved) when it may be used, else the reason (PRODUCT, section 11).

    `roots` None means a loopback-only stack: any path. A relative path counts from `base` (the project root), or
    from the current folder. A path that does not exist is resolved as far as it goes, so that a missing file below
    a root is reported by whoever opens it, and nothing outside the roots can be probed.
    """
    text = str(path)
    if not text.strip() or "\x00" in text:
        return Refusal(
            "path_invalid",
            field,
            f"{field} is empty or holds a NUL character. Give a path.",
            f"{field} 为空或含有 NUL 字符。请填写路径。",
            value=shown(text, 200),
        )
    try:
        real = (Path(base or Path.cwd()) / Path(text).expanduser()).resolve()
        allowed = None if roots is None else [Path(root).expanduser().resolve() for root in roots]
    except (OSError, RuntimeError, ValueError) as error:
        return _unresolvable(text, field, error)
    if allowed is None or any(real.is_relative_to(root) for root in allowed):
        return real
    listed = ", ".join(shown(str(root), 200) for root in allowed) or "-"
    return Refusal(
        "path_forbidden",
        field,
        f"{shown(text, 200)} lies outside the folders that jobs may use ({listed}). "
        f"Move it there, or add its folder to {ROOTS_SETTING}.",
        f"{shown(text, 200)} 不在任务可使用的目录内（{listed}）。请移动到这些目录，或把它所在的目录加入 {ROOTS_SETTING}。",
        value=shown(text, 200),
        allowed=listed,
    )


def looks_like_hub_id(text: str) -> bool:
    """Whether `text` has the form org/name or org/name@revision and is not plainly a file's path."""
    if not _HUB_ID.fullmatch(text) or text.lower().endswith(_FILE_ENDINGS):
        return False
    name = text.partition("@")[0]
    return "--" not in name and ".." not in name


def _unresolvable(text: str, field: str, error: Exception) -> Refusal:
    loop = isinstance(error, RuntimeError) and "loop" in str(error).lower()
    en = "its links form a loop" if loop else shown(getattr(error, "strerror", None) or str(error))
    zh = "符号链接形成了循环" if loop else en
    return Refusal(
        "path_invalid",
        field,
        f"{shown(text, 200)} cannot be resolved: {en}. Check the path.",
        f"无法解析路径 {shown(text, 200)}：{zh}。请检查。",
        value=shown(text, 200),
    )
