"""What backup and restore ask about a home: which stack it is, and whether it runs."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.bus.keys import write_atomically

ID_FILE = "stack.id"
_RUN_FILES = (
    ("trainyard up", "run/stack.json"),
    ("api", "run/api.json"),
    ("scheduler", "run/scheduler.json"),
)


class StackRuns(RuntimeError):
    """A stack runs on this home; the sentence names its processes."""


def stack_id(home: Path) -> str | None:
    """Return the id of the stack of `home`, None before its first start."""
    try:
        return (home / ID_FILE).read_text().strip() or None
    except FileNotFoundError:
        return None


def ensure_stack_id(home: Path) -> str:
    """Return the id of the stack of `home`, made now where there is none."""
    known = stack_id(home)
    if known is None:
        known = str(uuid.uuid4())
        write_atomically(home / ID_FILE, known + "\n")
    return known


def running(home: Path) -> list[tuple[str, int]]:
    """Return (service, pid) of every service of `home` that lives."""
    found = [(name, _pid(home / path)) for name, path in _RUN_FILES]
    return [(name, pid) for name, pid in found if pid is not None]


def _pid(path: Path) -> int | None:
    """Return the pid in a run file if that process lives."""
    try:
        pid = int(json.loads(path.read_text())["pid"])
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return None if state == "Z" else pid


@contextmanager
def stopped(home: Path) -> Iterator[None]:
    """Hold the home so that no stack starts meanwhile. Raises StackRuns, OSError."""
    path = home / "run" / "up.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        held = False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = True
        alive = running(home)
        if held or alive:
            named = ", ".join(f"{name} (pid {pid})" for name, pid in alive) or "trainyard up"
            stop = f"kill -TERM {alive[0][1]}" if alive else "Ctrl-C in its terminal"
            raise StackRuns(
                f"A stack runs on {home}: {named}. Stop it first ({stop}); running trainers go on meanwhile."
            )
        yield
