"""What lives of a stack, found by the environment that every process of it inherits, and which locks are held."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from pathlib import Path

import psutil

from services.gpu_agent.processes import is_locked

ZYGOTE = "services.gpu_agent.zygote"
AGENT = "services.gpu_agent"


def processes_of(home: Path) -> dict[int, str]:
    """Return the live processes that belong to the stack of `home`: by environment, which forks inherit."""
    mark = f"TRAINYARD_HOME={home}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            if words:  # a zombie has none
                found[int(folder.name)] = words
    return found


def leftovers(home: Path, seconds: float, beside: Collection[int] = ()) -> list[str]:
    """Return what still lives of a stack that was stopped, after waiting up to `seconds` for it to be gone.

    `beside`: processes that belong to its home, and that somebody else has started and ends.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = {pid: words for pid, words in processes_of(home).items() if pid not in beside}
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return [f"{pid} {words}" for pid, words in sorted(left.items())]


def held_locks(home: Path) -> list[str]:
    """Return the job and slot locks that someone holds."""
    agent = home / "agents" / "local"
    paths = [*agent.glob("jobs/*/lock*"), *agent.glob("locks/*.lock")]
    # asked twice: the agent looks at locks by taking them for a moment
    return [str(p.relative_to(home)) for p in paths if is_locked(p) and _is_still_locked(p)]


def _is_still_locked(path: Path) -> bool:
    for _ in range(20):
        time.sleep(0.01)
        if not is_locked(path):
            return False
    return True


def strays(home: Path, root: int, seconds: float, beside: Collection[int] = ()) -> list[str]:
    """Return what lives of a stack and is none of its services, after waiting up to `seconds` for it to be gone.

    `root` is the supervisor, or the agent of a host that has none. A trainer cannot be told by its command line: it is
    a fork of the zygote. `beside` is as for `leftovers`.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = processes_of(home)
        left = [
            f"{p} {words}"
            for p, words in found.items()
            if p not in beside and not _is_service(p, root, found)
        ]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _is_service(pid: int, root: int, found: dict[int, str]) -> bool:
    try:
        line = [pid, *(p.pid for p in psutil.Process(pid).parents())]
    except psutil.Error:
        return True  # gone meanwhile
    if root not in line:
        return False
    above = [p for p in line[1 : line.index(root) + 1] if _is_agent(found.get(p, ""))]
    return not above or (line[1] == above[0] and ZYGOTE in found[pid])


def _is_agent(words: str) -> bool:
    return f"-m {AGENT}" in words and ZYGOTE not in words
