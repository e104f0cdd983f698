"""Processes of a run, told apart by start time: signals without pid reuse, and proof by /proc that nothing is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from services.gpu_agent import shim


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """A process by pid and start time (clock ticks since boot)."""

    pid: int
    start_time: int

    def is_alive(self) -> bool:
        """Tell whether this very process is there and no zombie."""
        fields = shim.stat_fields(self.pid)
        return fields is not None and fields[2] == self.start_time

    def open(self) -> int | None:
        """Return a pidfd of this very process, or None where it is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except (ProcessLookupError, OSError):
            return None
        if self.is_alive():  # checked after opening: from here on the pidfd cannot mean another one
            return descriptor
        os.close(descriptor)
        return None

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to this very process; False where it is gone."""
        descriptor = self.open()
        if descriptor is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True


@dataclass(frozen=True, slots=True)
class RunProcesses:
    """`pid.json`."""

    shim: ProcessRef
    trainer: ProcessRef | None
    boot_id: str
    warm: bool = False

    @staticmethod
    def read(path: Path) -> RunProcesses | None:
        """Return what the file says, or None where there is none."""
        document = shim.read_json(str(path))
        if document is None:
            return None
        try:
            trainer = document["trainer"]
            return RunProcesses(
                ProcessRef(document["shim"]["pid"], document["shim"]["start_time"]),
                ProcessRef(trainer["pid"], trainer["start_time"]) if trainer else None,
                str(document["boot_id"]),
                bool(document.get("warm")),
            )
        except (KeyError, TypeError):
            return None


def is_locked(path: Path) -> bool:
    """Tell whether someone holds the lock, by taking it for a moment (a starter waits a second before it gives up)."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def lock_files(lock: Path) -> list[Path]:
    """Return a job's lock and those of its ranks, as far as there are any."""
    return [lock, *sorted(lock.parent.glob(f"{lock.name}.*"))]


def holder_of(path: Path) -> str | None:
    """Return the job id in a lock that is held, or None where it is free."""
    if not is_locked(path):
        return None
    with contextlib.suppress(OSError):
        return path.read_text().split(" ")[0] or "foreign"
    return "foreign"


def holders(path: Path) -> set[int]:
    """Return the processes (of this user) that have the file open."""
    try:
        wanted = path.stat()
    except OSError:
        return set()
    found: set[int] = set()
    for entry in _pids():
        with contextlib.suppress(OSError), os.scandir(f"/proc/{entry}/fd") as descriptors:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    opened = os.stat(descriptor.path)  # noqa: PTH116 - follows the link in /proc
                    if (opened.st_dev, opened.st_ino) == (wanted.st_dev, wanted.st_ino):
                        found.add(entry)
                        break
    return found - {os.getpid()}


def family(processes: RunProcesses | None, lock: Path) -> set[ProcessRef]:
    """Return all that lives of a run but its shim: its session, all descendants, and whoever holds one of its locks."""
    table = {pid: fields for pid in _pids() if (fields := shim.stat_fields(pid)) is not None}
    found = {pid for path in lock_files(lock) for pid in holders(path)}
    keeper = None
    if processes is not None and processes.boot_id == shim.boot_id():
        keeper = processes.shim
        roots = {ref.pid for ref in (processes.shim, processes.trainer) if ref and ref.is_alive()}
        # a session id is not given away again while a process of that session lives; nothing older than the shim is in it
        found |= {
            pid
            for pid, (_, session, began) in table.items()
            if session == keeper.pid and began >= keeper.start_time
        }
        found |= _descendants(roots, {pid: fields[0] for pid, fields in table.items()}) | roots
    refs = {ProcessRef(pid, table[pid][2]) for pid in found if pid in table}
    return {ref for ref in refs if ref != keeper}


def signal_all(refs: Iterable[ProcessRef], number: signal.Signals) -> None:
    """Send a signal to every one that is still there."""
    for ref in refs:
        with contextlib.suppress(PermissionError):
            ref.send(number)


def _descendants(roots: set[int], parents: dict[int, int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
