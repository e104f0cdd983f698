"""What a cut between a host and the broker is, whoever makes it: a stalling proxy or namespaces."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Way(StrEnum):
    """Which direction carries nothing."""

    BOTH = "both"
    TO_BROKER = "to broker"
    """What the agent says does not arrive; what it is told does."""
    TO_AGENT = "to agent"


@dataclass(frozen=True, slots=True)
class Cut:
    """One partition as it happened; seconds since the epoch."""

    way: Way
    began: float
    healed: float

    @property
    def seconds(self) -> float:
        return self.healed - self.began


class Line(Protocol):
    """The way from one host to the broker. Nothing is closed by a cut: what waits goes on after the heal."""

    @property
    def broker_url(self) -> str:
        """Where the host's agent finds the broker."""
        ...

    @property
    def api_url(self) -> str:
        """Where the host finds the api when it joins."""
        ...

    @property
    def enter(self) -> tuple[str, ...]:
        """What goes before a command that is to run on that host."""
        ...

    def cut(self, way: Way) -> None:
        """Let nothing pass in a direction."""
        ...

    def heal(self) -> None:
        """Let everything pass again."""
        ...

    def close(self) -> None:
        """Remove whatever was made."""
        ...
