"""The agent of a stack, as `trainyard up` starts it, but with paced_trainer.py for a trainer and no zygote."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from services.gpu_agent.daemon import Agent, Options
from services.gpu_agent.identity import InstanceLock, ensure_host, host_id
from services.gpu_agent.settings import AgentSettings
from shared import log as logs
from shared.bus.credentials import bus_config

TRAINER = (sys.executable, "-S", str(Path(__file__).with_name("paced_trainer.py")))


async def run(settings: AgentSettings) -> None:
    """Work until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    host = host_id(ensure_host(settings.files))
    agent = Agent(settings, host, Options(trainer_command=TRAINER))
    await agent.run(bus_config(settings, "agent", host), stop)


if __name__ == "__main__":
    logs.configure("gpu_agent")
    settings = AgentSettings()
    with InstanceLock(settings.files):
        asyncio.run(run(settings))
