"""The bus as the api sees it: perhaps not there yet, perhaps gone for a while; REST works all the same."""

from __future__ import annotations

from shared.bus import Bus
from shared.bus.port import BusUnavailable


class BusLink:
    """Holds the bus once there is one."""

    def __init__(self, bus: Bus | None = None) -> None:
        """Start with a bus, or without."""
        self._bus = bus

    def attach(self, bus: Bus) -> None:
        """Take the bus that was just connected."""
        self._bus = bus

    @property
    def bus(self) -> Bus:
        """Return the bus. Raises BusUnavailable before the first connection."""
        if self._bus is None:
            raise BusUnavailable("the api has not reached the broker yet")
        return self._bus

    @property
    def is_connected(self) -> bool:
        """Tell whether a message could be sent now."""
        return self._bus is not None and self._bus.is_connected
