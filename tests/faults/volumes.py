"""Small volumes that a test fills to the last byte and frees again; they need root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1 << 20
BALLAST = ".ballast"

needs_root = pytest.mark.skipif(
    os.geteuid() != 0,
    reason="NOT PROVEN HERE: full disks need root, to mount small volumes; run the suite once as root",
)


class Volume:
    """A tmpfs of its own at `path`."""

    def __init__(self, path: Path, mib: int) -> None:
        self.path = path
        self.mib = mib

    @property
    def free(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Take all but `leave` bytes; what others free meanwhile is taken with the next call."""
        ballast = self.path / BALLAST
        with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while self.free > leave:
                file.write(b"\0" * max(1, min(MIB, self.free - leave)))

    def release(self) -> None:
        """Give everything back that was taken."""
        (self.path / BALLAST).unlink(missing_ok=True)


@contextlib.contextmanager
def small_volume(path: Path, mib: int) -> Iterator[Volume]:
    """Mount `mib` MiB at `path`, and take it away again whatever still holds it."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path)], check=True)
    try:
        yield Volume(path, mib)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)
