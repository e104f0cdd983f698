"""A consistent cut through several SQLite databases of a running stack.

All write locks are held at one moment, and a read transaction is begun in each database under them. What one service
has committed and another has taken from it then stands in both copies or in the sender's alone, as after a crash of
everything at that moment; streams bring the rest. The locks are held for a few milliseconds; copying goes on from the
read transactions while the services write.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

LOCK_SECONDS = 1.0
"""Longest wait for one write lock: the others are held meanwhile, and services give up after 5 s."""
TRIES = 60
PAUSE_SECONDS = 0.25


class DatabasesBusy(RuntimeError):
    """The write locks could not all be had in time."""


@contextlib.contextmanager
def cut(paths: Sequence[Path]) -> Iterator[Mapping[Path, sqlite3.Connection]]:
    """Yield a connection to each database, all reading as of the same moment. Raises DatabasesBusy, sqlite3.Error."""
    with contextlib.ExitStack() as stack:
        readers: dict[Path, sqlite3.Connection] = {}
        for path in paths:
            reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
            readers[path] = stack.enter_context(contextlib.closing(reader))
        for _ in range(TRIES):
            try:
                with _locked(paths):
                    for reader in readers.values():
                        reader.execute("BEGIN")
                        # A deferred transaction reads as of its first statement.
                        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) and "busy" not in str(error):
                    raise
                for reader in readers.values():
                    if reader.in_transaction:
                        reader.execute("ROLLBACK")
            time.sleep(PAUSE_SECONDS)
        else:
            raise DatabasesBusy(", ".join(str(path) for path in paths))
        yield readers


@contextlib.contextmanager
def _locked(paths: Sequence[Path]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for path in paths:
            holder = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
            stack.enter_context(contextlib.closing(holder))
            holder.execute("BEGIN IMMEDIATE")
        yield


def copy(source: sqlite3.Connection, target: Path) -> str:
    """Write what `source` reads into a new file of mode 0600, whole and synced, and return its schema revision.

    Raises sqlite3.Error, OSError.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(sqlite3.connect(target)) as copied:
        source.backup(copied)
        copied.execute("PRAGMA journal_mode=DELETE")
        row = copied.execute("SELECT version_num FROM alembic_version").fetchone()
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return str(row[0]) if row else ""
