"""An agent as a process of its own, with the small trainer: `agent_process.py HOME NATS_URL HOST ZYGOTE`."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from services.gpu_agent.daemon import Agent, Options
from services.gpu_agent.identity import InstanceLock
from services.gpu_agent.settings import AgentSettings
from shared import log as logs
from shared.bus.credentials import bus_config

TRAINER = (sys.executable, str(Path(__file__).with_name("small_trainer.py")))


async def run(home: Path, url: str, host: str, *, zygote: bool) -> None:
    settings = agent_settings(home, url, zygote=zygote)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    agent = Agent(settings, host, options())
    await agent.run(bus_config(settings, "agent", host), stop)


def options(**changes: object) -> Options:
    fields = {
        "trainer_command": TRAINER,
        "checks": (),
        "ack_seconds": 0.2,
        "sample_seconds": 0.5,
    } | changes
    return Options(**fields)


def agent_settings(
    home: Path, url: str, *, zygote: bool = False, rules: bool = False
) -> AgentSettings:
    """`rules`: with the rules service, which outlives an agent that is killed."""
    return AgentSettings(
        home=home,
        nats_url=url,
        agent_zygote=zygote,
        agent_rules=rules,
        agent_slots=4,
        agent_heartbeat_seconds=0.3,
        checkpoint_dir=home / "checkpoints",
    )


if __name__ == "__main__":
    logs.configure("gpu_agent")
    _home = Path(sys.argv[1])
    _url, _host, _zygote = sys.argv[2:5]
    with InstanceLock(agent_settings(_home, _url).files):
        asyncio.run(run(_home, _url, _host, zygote=_zygote == "zygote"))
