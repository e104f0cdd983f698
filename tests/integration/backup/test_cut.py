"""One moment of several databases while they are written to: what one holds of another's, the other holds too."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from trainyard.backup import cut as cutting
from trainyard.backup.cut import DatabasesBusy, copy, cut

pytestmark = pytest.mark.integration


def database(path: Path) -> Path:
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA journal_mode=WAL")
        made.execute("CREATE TABLE n (value INTEGER)")
        made.execute("CREATE TABLE alembic_version (version_num TEXT)")
        made.execute("INSERT INTO alembic_version VALUES ('0001')")
        made.commit()
    return path


def pass_on(paths: list[Path], enough: threading.Event) -> None:
    """Write each number into every database in turn, as a message that goes from service to service."""
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(
                contextlib.closing(sqlite3.connect(p, isolation_level=None, timeout=60))
            )
            for p in paths
        ]
        number = 0
        while not enough.is_set():
            number += 1
            for one in opened:
                one.execute("INSERT INTO n VALUES (?)", (number,))


def highest(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as one:
        return int(one.execute("SELECT coalesce(max(value), 0) FROM n").fetchone()[0])


def go_on(last: Path) -> None:
    """Wait until some more numbers have come to the last database."""
    wanted, deadline = highest(last) + 5, time.monotonic() + 60
    while highest(last) < wanted:
        assert time.monotonic() < deadline, "the writer stands still"
        time.sleep(0.005)


def rounds(tmp_path: Path, take: Any) -> list[list[int]]:
    """Copy several times while numbers go round; return what each copy held."""
    paths = [database(tmp_path / f"{i}.db") for i in range(3)]
    enough = threading.Event()
    writer = threading.Thread(target=pass_on, args=(paths, enough))
    writer.start()
    found = []
    try:
        go_on(paths[-1])
        for turn in range(6):
            with take(paths) as readers:
                # Copied last to first and with a pause: only the cut makes them agree.
                for i in (2, 0, 1):
                    go_on(paths[-1])
                    assert copy(readers[paths[i]], tmp_path / f"{turn}-{i}.copy") == "0001"
            found.append([highest(tmp_path / f"{turn}-{i}.copy") for i in range(3)])
    finally:
        enough.set()
        writer.join(60)
    return found


def test_no_copy_holds_what_the_one_before_it_lacks(tmp_path: Path) -> None:
    for first, second, third in rounds(tmp_path, cut):
        assert first >= second >= third >= first - 1


def test_the_same_look_finds_copies_that_were_not_cut(tmp_path: Path) -> None:
    @contextlib.contextmanager
    def not_cut(paths: list[Path]):  # type: ignore[no-untyped-def]
        with contextlib.ExitStack() as stack:
            yield {
                p: stack.enter_context(contextlib.closing(sqlite3.connect(p, isolation_level=None)))
                for p in paths
            }

    found = rounds(tmp_path, not_cut)
    assert any(not first >= second >= third >= first - 1 for first, second, third in found)


def test_a_lock_that_nobody_lets_go_of_is_given_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(cutting, "TRIES", 2)
    path = database(tmp_path / "0.db")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabasesBusy), cut([path]):
            pass
        holder.execute("ROLLBACK")
    with cut([path]) as readers:
        assert list(readers) == [path]
