"""The least that can answer heartbeats: a constant to each, on the scheduler's own connection. `python benchmarks/echo.py HOME`."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shared.bus import Bus
from shared.bus.credentials import bus_config
from shared.events.base import EventBase
from shared.events.calls import HeartbeatReply
from shared.settings import Settings


async def main(home: Path) -> None:
    """Answer until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    bus = await Bus.connect(bus_config(Settings(home=home), "scheduler"), 30)

    async def answer(_: str, __: bytes) -> EventBase:
        return HeartbeatReply()

    served = await bus.serve("hb.*", answer)
    await stopping.wait()
    await served.close()
    await bus.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
