"""Commands that containers run: one service, the broker, and a health probe for each."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Annotated, Literal

import typer

from shared.bus.embedded import BrokerConfigInvalid, BrokerMissing, EmbeddedBroker, is_healthy
from shared.settings import Settings
from trainyard.cli.output import fail
from trainyard.stack.ports import http_ok

Name = Literal["broker", "api", "scheduler", "agent", "reward"]


def api() -> None:
    """Run the api alone (production: one container a service)."""
    _become([sys.executable, "-P", "-m", "services.api"])


def scheduler() -> None:
    """Run the scheduler alone."""
    _become([sys.executable, "-P", "-m", "services.scheduler"])


def broker(
    listen: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
) -> None:
    """Run the broker alone, with a key and least permissions for each service and host."""
    settings = Settings()
    try:
        prepared = EmbeddedBroker(
            settings.home, settings.nats_port, listen=listen, store_mib=settings.nats_store_mib
        ).prepare()
        _become(prepared.command())
    except (BrokerMissing, BrokerConfigInvalid) as error:
        raise fail(str(error)) from None


def health(name: Annotated[Name, typer.Argument(help="Which service.")]) -> None:
    """Exit with 0 when a service of this home works, else with 1 (for container health checks)."""
    if not asyncio.run(PROBES[name](Settings())):
        raise typer.Exit(1)


async def _broker(settings: Settings) -> bool:
    return await is_healthy(settings.home)


async def _api(settings: Settings) -> bool:
    return await http_ok("127.0.0.1", settings.api_port, "/readyz")


async def _scheduler(settings: Settings) -> bool:
    return _alive(settings, "run/scheduler.json")


async def _agent(settings: Settings) -> bool:
    return _alive(settings, "agents/local/agent.json")


async def _reward(settings: Settings) -> bool:
    return await http_ok("127.0.0.1", settings.reward_port, "/readyz")


PROBES: dict[Name, Callable[[Settings], Coroutine[None, None, bool]]] = {
    "broker": _broker,
    "api": _api,
    "scheduler": _scheduler,
    "agent": _agent,
    "reward": _reward,
}


def _alive(settings: Settings, name: str) -> bool:
    """Tell whether the process that wrote this file is there."""
    path = settings.home / name
    try:
        pid = int(json.loads(path.read_text())["pid"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError):
        return False
    return True


def _become(argv: list[str]) -> None:
    os.execv(argv[0], argv)
