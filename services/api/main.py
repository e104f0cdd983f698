"""Composition root of the api: settings, databases, app, server. `python -m services.api`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from services.api import restored
from services.api.app import create_app
from services.api.background import Background
from services.api.db.databases import migrate_main, open_main, open_telemetry
from services.api.deps import ApiServices
from services.api.link import BusLink
from services.api.settings import ApiSettings
from services.api.telemetry.database import migrate_telemetry
from shared import log
from shared.clock import SystemClock
from shared.keyring import Keyring
from shared.runs import write_atomic_json
from shared.settings import forget_secrets

EX_UNAVAILABLE = 69
EX_CONFIG = 78
"""sysexits.h: a restart does not help, the configuration must change."""
STOP_SECONDS = 5
WS_FRAME_LIMIT = 64 * 1024
"""Bytes of one inbound WebSocket message; clients have nothing to say."""


class Refused(RuntimeError):
    """The api cannot start; the sentence says what to do, `status` is the exit status."""

    def __init__(self, sentence: str, status: int) -> None:
        """Keep both."""
        super().__init__(sentence)
        self.status = status


def main() -> int:
    """Run the api until SIGTERM or SIGINT; return the exit status."""
    try:
        settings = ApiSettings()
    except ValidationError as error:
        print(f"The settings are not valid: {error}", file=sys.stderr)  # noqa: T201 - no log yet
        return EX_CONFIG
    forget_secrets()
    log.configure("api", settings.log_level)
    logger = log.logger("api.main")
    try:
        check_settings(settings)
        listener = listen(settings)
        services = make_services(settings)
    except Refused as refused:
        logger.error("api_refused", error=str(refused))
        print(refused, file=sys.stderr)  # noqa: T201 - for the person who started it
        return refused.status
    try:
        asyncio.run(restored.heal(services))
        serve(services, listener)
    except restored.NotHealed as error:
        logger.error("restore_not_healed", error=str(error))
        print(  # noqa: T201 - for the person who started it
            f"The databases were restored, and what was asked for since the backup could not be taken back: {error}. "
            "It is tried again at the next start; the broker must be running.",
            file=sys.stderr,
        )
        return EX_UNAVAILABLE
    finally:
        (settings.home / "run" / "api.json").unlink(missing_ok=True)
        services.main.close()
        services.telemetry.close()
    return 0


def check_settings(settings: ApiSettings) -> None:
    """Refuse to be reachable by others without a token. Raises Refused."""
    if not settings.is_loopback and not settings.api_token:
        raise Refused(
            f"TRAINYARD_API_HOST is {settings.api_host}, so others can reach the api: set TRAINYARD_API_TOKEN "
            "(for instance the output of `openssl rand -hex 32`), or bind to 127.0.0.1. "
            f"TRAINYARD_API_HOST 为 {settings.api_host}，外部可访问：请设置 TRAINYARD_API_TOKEN，或绑定 127.0.0.1。",
            EX_CONFIG,
        )


def listen(settings: ApiSettings) -> socket.socket:
    """Return the listening socket. Raises Refused when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in settings.api_host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.api_host, settings.api_port))
    except OSError as error:
        listener.close()
        raise Refused(
            f"Port {settings.api_port} of {settings.api_host} cannot be used: {error.strerror}. "
            "Stop what listens there, or set TRAINYARD_API_PORT.",
            EX_UNAVAILABLE,
        ) from None
    listener.set_inheritable(True)
    return listener


def make_services(settings: ApiSettings) -> ApiServices:
    """Open and migrate both databases, load the master key. Raises Refused when a database cannot be used."""
    settings.home.mkdir(parents=True, exist_ok=True)
    main_db, telemetry_db = open_main(settings), open_telemetry(settings)
    try:
        migrate_main(main_db)
        migrate_telemetry(telemetry_db)
    except SQLAlchemyError as error:
        cause = " ".join(str(getattr(error, "orig", None) or error).split())[:500].rstrip(".")
        raise Refused(
            f"The database cannot be used: {type(error).__name__}: {cause}. "
            "Check TRAINYARD_DATABASE_URL, or restore the database of TRAINYARD_HOME.",
            EX_CONFIG,
        ) from error
    return ApiServices(
        settings=settings,
        main=main_db,
        telemetry=telemetry_db,
        link=BusLink(),
        clock=SystemClock(),
        keyring=Keyring.load(settings.home / "keys" / "master.key"),
    )


def serve(services: ApiServices, listener: socket.socket) -> None:
    """Serve until a signal; open requests get STOP_SECONDS to finish."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with Background(services):
            yield

    host, port = listener.getsockname()[:2]
    write_run_file(services.settings, host, port)
    config = uvicorn.Config(
        create_app(services, lifespan),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws_max_size=WS_FRAME_LIMIT,
        ws_max_queue=32,
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    # uvicorn raises the signal again once it has stopped; with these the process then ends with status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    # What is there by now stays for good; looking through it for garbage would hold up requests by 0.1 s at a time.
    gc.collect()
    gc.freeze()
    uvicorn.Server(config).run(sockets=[listener])


def write_run_file(settings: ApiSettings, host: str, port: int) -> None:
    """Tell other processes of this machine where the api listens (the port may have been chosen by the system)."""
    folder = settings.home / "run"
    folder.mkdir(parents=True, exist_ok=True)
    shown = f"[{host}]" if ":" in host else host
    write_atomic_json(
        folder / "api.json", {"url": f"http://{shown}:{port}", "port": port, "pid": os.getpid()}
    )
