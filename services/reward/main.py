"""Composition root of the reward service: settings, verifier, app, server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from services.reward.app import create_app
from services.reward.engine import Engine
from services.reward.judging_parts import Judging
from services.reward.model_desk import ModelDesk
from services.reward.observe import RewardMetrics
from services.reward.repeats import Repeats
from services.reward.routes import RewardServices
from services.reward.scoring import Scoring
from services.reward.settings import RewardSettings
from services.reward.symbolic.pool import SymbolicPool
from shared import log
from shared.runs import write_atomic_json
from shared.settings import forget_secrets

EX_UNAVAILABLE = 69
EX_CONFIG = 78
"""sysexits.h: a restart does not help, the configuration must change."""
STOP_SECONDS = 5
WARM_AFTER_SECONDS = 10.0


class Refused(RuntimeError):
    """The service cannot start; the sentence says what to do, `status` is the exit status."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


def main() -> int:
    """Run the service until SIGTERM or SIGINT; return the exit status."""
    try:
        settings = RewardSettings()
    except ValidationError as error:
        print(f"The settings are not valid: {error}", file=sys.stderr)  # noqa: T201 - no log yet
        return EX_CONFIG
    forget_secrets()
    log.configure("reward", settings.log_level)
    try:
        if not settings.reward_is_loopback and not settings.api_token:
            raise Refused(
                f"TRAINYARD_REWARD_HOST is {settings.reward_host}, so others can reach the service: set TRAINYARD_API_TOKEN, "
                "or bind to 127.0.0.1. "
                f"TRAINYARD_REWARD_HOST 为 {settings.reward_host}，外部可访问：请设置 TRAINYARD_API_TOKEN，或绑定 127.0.0.1。",
                EX_CONFIG,
            )
        listener = listen(settings)
    except Refused as refused:
        print(refused, file=sys.stderr)  # noqa: T201 - for the person who started it
        return refused.status
    try:
        serve(settings, listener)
    finally:
        run_file(settings).unlink(missing_ok=True)
    return 0


def run_file(settings: RewardSettings) -> Path:
    """Return where the service says on which port it listens."""
    return settings.home / "run" / "reward.json"


def listen(settings: RewardSettings) -> socket.socket:
    """Return the listening socket. Raises Refused when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in settings.reward_host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.reward_host, settings.reward_port))
    except OSError as error:
        listener.close()
        raise Refused(
            f"Port {settings.reward_port} of {settings.reward_host} cannot be used: {error.strerror}. "
            "Stop what listens there, or set TRAINYARD_REWARD_PORT.",
            EX_UNAVAILABLE,
        ) from None
    return listener


def serve(settings: RewardSettings, listener: socket.socket) -> None:
    """Serve until a signal; open requests get STOP_SECONDS to finish."""
    symbolic = SymbolicPool(settings.reward_verifiers)
    metrics = RewardMetrics()
    judging = None if settings.reward_rules_only else Judging.open(settings)
    # beside a trainer too: a checkpoint of a host is best scored on that host
    models = (
        ModelDesk(None, settings.roots, settings.reward_model_device)
        if judging is None
        else judging.models
    )
    engine = Engine(symbolic, None if judging is None else judging.desk, models)
    services = RewardServices(
        Scoring(settings, engine, metrics),
        Repeats(time.monotonic),
        None if judging is None else judging.administration,
        None if judging is None else judging.meter,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if judging is not None:
            await judging.start()
        services.asked_at = time.monotonic()
        services.ready = True
        background = []
        if not settings.reward_rules_only:
            background.append(asyncio.create_task(_warm(symbolic)))
        if settings.reward_idle_exit_seconds is not None:
            background.append(
                asyncio.create_task(_end_when_idle(services, settings.reward_idle_exit_seconds))
            )
        host, port = listener.getsockname()[:2]
        run_file(settings).parent.mkdir(parents=True, exist_ok=True)
        write_atomic_json(
            run_file(settings),
            {"url": f"http://{host}:{port}", "port": port, "pid": os.getpid()},
        )
        yield
        for task in background:
            task.cancel()
        services.scoring.draining = True
        symbolic.close()
        if judging is None:
            await models.close()
        else:
            await judging.stop()

    config = uvicorn.Config(
        create_app(services, lifespan),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    # uvicorn raises the signal again once it has stopped; with these the process then ends with status 0
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listener])


async def _warm(symbolic: SymbolicPool) -> None:
    """Load the computer algebra before it is asked for, but not while the rest of a stack is starting."""
    await asyncio.sleep(WARM_AFTER_SECONDS)
    await symbolic.warm()


async def _end_when_idle(services: RewardServices, seconds: float) -> None:
    while True:
        await asyncio.sleep(min(seconds, 5.0))
        idle = time.monotonic() - services.asked_at
        if not services.scoring.in_flight and idle >= seconds:
            os.kill(os.getpid(), signal.SIGTERM)
            return
