"""Puts staged files in the place of the old ones: all of them or, after a crash, all of them at the next start.

A journal is written before the first rename; whoever finds it carries the rest out. The old files are kept aside.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.runs import fsync_directory, write_atomic_json

JOURNAL = ".restore.json"
_SUFFIXES = ("", "-wal", "-shm")
"""A SQLite database and what belongs to it."""


@dataclass(frozen=True, slots=True)
class Swap:
    """Below `home`: staged files lie in `staging`, old ones go to `aside`."""

    home: Path
    staging: str
    aside: str
    members: tuple[str, ...]


def begin(home: Path, staging: Path, aside: Path, members: Sequence[str]) -> None:
    """Write the journal: from here on the restore happens. Raises OSError."""
    for folder in [*sorted(p for p in staging.rglob("*") if p.is_dir()), staging]:
        fsync_directory(folder)
    document = {"staging": staging.name, "aside": aside.name, "members": list(members)}
    write_atomic_json(home / JOURNAL, document)


def pending(home: Path) -> Swap | None:
    """Return the restore that was begun and not finished, if there is one. Raises OSError, ValueError."""
    try:
        document: dict[str, Any] = json.loads((home / JOURNAL).read_bytes())
    except FileNotFoundError:
        return None
    return Swap(home, document["staging"], document["aside"], tuple(document["members"]))


def finish(home: Path) -> Swap | None:
    """Carry a begun restore out to its end; harmless to repeat from any point. Raises OSError."""
    swap = pending(home)
    if swap is None:
        return None
    for name in swap.members:
        staged, target = home / swap.staging / name, home / name
        if not staged.exists():
            continue
        for suffix in _SUFFIXES:
            old = target.with_name(target.name + suffix)
            if old.exists():
                kept = home / swap.aside / f"{name}{suffix}"
                kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                old.replace(kept)
                fsync_directory(kept.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(target)
        fsync_directory(target.parent)
    shutil.rmtree(home / swap.staging, ignore_errors=True)
    (home / JOURNAL).unlink(missing_ok=True)
    fsync_directory(home)
    return swap
