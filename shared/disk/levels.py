"""When a volume counts as low or full, with hysteresis, and the one sentence that says so. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath

MIB = 1 << 20
FULL_BYTES = 16 * MIB
"""Below this nothing new is taken on: what is left is for ending in good order."""
START_BYTES = 64 * MIB
"""Least room for a new run beside its checkpoints: log, events, spool."""
LOW_BYTES = 512 * MIB
"""Below this a person should look; on a volume smaller than 5 GiB, below a tenth of it."""
CLEAR_FACTOR = 2
"""A level is left only at twice the bytes at which it was entered, so that nothing flaps at a bound."""


class Level(StrEnum):
    """How a volume stands."""

    OK = "ok"
    LOW = "low"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Volume:
    """A folder's volume at one moment; bytes that an ordinary user may still write, and its size."""

    path: str
    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Shortage:
    """A folder that lacks room: bytes that were needed there and bytes that there were."""

    path: str
    need: int
    have: int

    @property
    def en(self) -> str:
        """Return the sentence in English."""
        return f"{self.path} needs {in_words(self.need)} and has {in_words(self.have)} free"

    @property
    def zh(self) -> str:
        """Return the sentence in Chinese."""
        return f"{self.path} 需要 {in_words(self.need)}，剩余 {in_words(self.have)}"


def low_bytes(total: int) -> int:
    """Return the free bytes below which a volume of `total` bytes is low."""
    return max(FULL_BYTES, min(LOW_BYTES, total // 10))


def judge(volume: Volume, before: Level = Level.OK) -> Level:
    """Return the level now, given the level at the last look."""
    if volume.free < FULL_BYTES * (CLEAR_FACTOR if before is Level.FULL else 1):
        return Level.FULL
    factor = 1 if before is Level.OK else CLEAR_FACTOR
    # A volume smaller than twice its own bound could never be left.
    bound = min(low_bytes(volume.total) * factor, max(volume.total // 2, FULL_BYTES))
    return Level.LOW if volume.free < bound else Level.OK


def shortage(volume: Volume, need: int = FULL_BYTES * CLEAR_FACTOR) -> Shortage:
    """Return what a full volume lacks until it is taken for usable again."""
    return Shortage(volume.path, need, volume.free)


def holding(path: str, volumes: tuple[Volume, ...]) -> Volume | None:
    """Return the volume of the deepest named folder that `path` lies in, or None."""
    around = [v for v in volumes if PurePath(path).is_relative_to(v.path)]
    return max(around, key=lambda v: len(v.path), default=None)


def fullest(volumes: tuple[Volume, ...]) -> Volume | None:
    """Return the volume with the least room, or None of none."""
    return min(volumes, key=lambda v: v.free, default=None)


def in_words(size: int) -> str:
    """Bytes for a person: 1.5 GiB, 20 MiB, 312 bytes."""
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if abs(size) >= 1 << power:
            return f"{size / (1 << power):.1f} {unit}"
    return f"{size} bytes"
