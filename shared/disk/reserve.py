"""Room set aside while there is some, so that the last words of a run can be written on a full disk."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_FALLOC_FL_KEEP_SIZE = 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def room_of(path: Path) -> Path:
    """Return the file that holds the room for `path`."""
    return path.with_name(f".{path.name}.room")


def set_aside(path: Path, size: int) -> None:
    """Set `size` bytes aside for `path`, beside it. Harmless to repeat. Raises OSError where there is no room."""
    room = room_of(path)
    descriptor = os.open(room, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        room.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def write_in_room(path: Path, body: bytes) -> bool:
    """Replace `path` by `body`, written where room was set aside; False where that does not hold so much.

    Raises OSError where the disk refuses for another reason.
    """
    room = room_of(path)
    try:
        descriptor = os.open(room, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if os.fstat(descriptor).st_size < len(body):
            return False
        os.pwrite(descriptor, body, 0)
        os.ftruncate(descriptor, len(body))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    room.replace(path)
    return True


def give_back(*paths: Path) -> None:
    """Release the room of `paths`, used or not."""
    for path in paths:
        room_of(path).unlink(missing_ok=True)


def extend_beyond_end(descriptor: int, size: int) -> None:
    """See to it that the next `size` appended bytes find room, where the file system can do that now."""
    end = os.fstat(descriptor).st_size
    _libc.fallocate(descriptor, _FALLOC_FL_KEEP_SIZE, end, size)


def punch_hole(path: Path, start: int, end: int) -> bool:
    """Give the blocks within `start`…`end` back to the file system; the file keeps its size and reads as zeros there.

    False where the file system cannot do that. Raises OSError where the file cannot be opened.
    """
    keep_size_and_punch = _FALLOC_FL_KEEP_SIZE | 2
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        return bool(_libc.fallocate(descriptor, keep_size_and_punch, start, end - start) == 0)
    finally:
        os.close(descriptor)
