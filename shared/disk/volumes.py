"""What the file system says about a folder's volume, and a watch over several with their levels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.disk.levels import Level, Volume, judge
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Standing:
    """One named folder of a watch: its volume and its level."""

    name: str
    volume: Volume
    level: Level


NEEDED = ("home", "database", "telemetry", "broker")
"""Folders of `stack_folders` without which the api cannot take requests; the others stop jobs alone."""


def stack_folders(settings: Settings) -> dict[str, Path]:
    """Return the folders of this machine that a stack writes to, by the name a person knows them under."""
    home, url = settings.home, settings.database_url
    found = {"home": home}
    if url is None or url.startswith("sqlite"):
        found["database"] = Path(url.removeprefix("sqlite:///")).parent if url else home / "api"
        found["telemetry"] = home / "api"
    if settings.nats_url is None:
        found["broker"] = home / "nats" / "store"
    return found | {
        "logs": home / "logs",
        "jobs": home / "agents" / "local" / "jobs",
        "checkpoints": settings.checkpoint_dir,
    }


def volume_of(folder: Path | str) -> Volume | None:
    """Return the volume of `folder`, or of its nearest parent that exists; None where it cannot be read.

    Out of inodes is out of room: `free` is then 0.
    """
    place = Path(folder)
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        found = os.statvfs(place)
    except (OSError, ValueError):
        return None
    free = found.f_bavail * found.f_frsize
    if found.f_files and not found.f_favail:
        free = 0
    return Volume(str(folder), free, found.f_blocks * found.f_frsize)


class VolumeWatch:
    """Looks at named folders; remembers each level, for the hysteresis."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """Do no I/O. `folders` by the name under which a person knows them."""
        self._folders = dict(folders)
        self._levels: dict[str, Level] = {}

    def look(self, *names: str) -> list[Standing]:
        """Return how every folder, or each of the named, stands now; one that cannot be read is left out."""
        found = []
        for name, folder in self._folders.items():
            if names and name not in names:
                continue
            volume = volume_of(folder)
            if volume is not None:
                level = judge(volume, self._levels.get(name, Level.OK))
                self._levels[name] = level
                found.append(Standing(name, volume, level))
        return found

    def full(self, *names: str) -> Standing | None:
        """Return the first of the named folders that is full now, or None."""
        return next((s for s in self.look(*names) if s.level is Level.FULL), None)
