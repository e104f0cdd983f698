"""`trainyard up`: starts the embedded stack, restarts what dies, stops it in order on SIGTERM or Ctrl-C.

Trainers are not its children in any sense that matters: they outlive it, and the next `up` adopts them.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import structlog

from shared import log as logs
from shared.bus.credentials import add_host_key, create_host_key, create_service_keys
from shared.bus.embedded import BrokerConfigInvalid, BrokerMissing, EmbeddedBroker, is_healthy
from shared.disk.levels import shortage
from shared.disk.reserve import NO_ROOM
from shared.disk.volumes import volume_of
from shared.ids import HostId, new_host_id
from shared.runs import REWARD_TOKEN, write_atomic_json
from shared.settings import Settings, without_secrets
from trainyard.backup import swap
from trainyard.backup.stack import ensure_stack_id
from trainyard.stack.broker_care import watch_broker
from trainyard.stack.ports import free_port, http_ok, is_free
from trainyard.stack.process import Service, StartFailed, python

log = logs.logger("up")
STOP_JOBS_FILE = "stop-jobs"
"""Beside the agent's files: asks it to stop all runs with a checkpoint before it leaves."""
STOP_JOBS_SECONDS = 150.0


class StackRefused(RuntimeError):
    """The stack cannot start; the sentence says why and what to do."""


@dataclass(frozen=True)
class Parts:
    """Which optional services run here."""

    agent: bool
    reward: bool
    stop_jobs: bool


def run(*, agent: bool = True, reward: bool = True, stop_jobs: bool = False) -> int:
    """Run the stack until SIGTERM or SIGINT; returns 0. Raises StackRefused."""
    settings = Settings()
    logs.configure("up", settings.log_level)
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        with _only_one(settings.home):
            if swap.finish(settings.home) is not None:
                log.warning("interrupted_restore_finished")
            ensure_stack_id(settings.home)
            return asyncio.run(_run(settings, Parts(agent, reward, stop_jobs)))
    except OSError as error:
        volume = volume_of(settings.home)
        if error.errno not in NO_ROOM or volume is None:
            raise
        short = shortage(volume)
        raise StackRefused(
            f"The disk is full: {short.en}. Free space there, or set TRAINYARD_HOME to another volume."
        ) from None


async def _run(settings: Settings, parts: Parts) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    services: list[Service] = []
    url = f"http://{_shown_host(settings)}:{_api_port(settings)}"
    try:
        for service in _services(settings, parts, url):
            services.append(service)
            await _start_unless_stopped(service, stop)
            if stop.is_set():
                break
        else:
            write_atomic_json(
                settings.home / "run" / "stack.json", {"url": url, "pid": os.getpid()}
            )
            _announce(url, settings)
            await _supervise(services, settings, stop)
    except StartFailed as error:
        raise StackRefused(str(error)) from None
    finally:
        if parts.stop_jobs:
            (_agent_home(settings) / STOP_JOBS_FILE).touch()
        for service in reversed(services):
            await service.stop()
        (settings.home / "run" / "stack.json").unlink(missing_ok=True)
    return 0


async def _supervise(services: list[Service], settings: Settings, stop: asyncio.Event) -> None:
    """Watch over the broker until told to stop."""
    broker = next((s for s in services if s.name == "broker"), None)
    watching = asyncio.create_task(watch_broker(broker, settings.home)) if broker else None
    await stop.wait()
    if watching is not None:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _start_unless_stopped(service: Service, stop: asyncio.Event) -> None:
    start = asyncio.create_task(service.start())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({start, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not start.done():
        start.cancel()
        return
    start.result()


def _services(settings: Settings, parts: Parts, url: str) -> list[Service]:
    """Return the services in starting order, their keys and configuration written."""
    create_service_keys(settings.home)
    api_port = int(url.rsplit(":", 1)[1])
    env = os.environ | {
        "TRAINYARD_HOME": str(settings.home),
        "TRAINYARD_CHECKPOINT_DIR": str(settings.checkpoint_dir),
        "TRAINYARD_API_PORT": str(api_port),
        "PYTHONUNBUFFERED": "1",
    }
    chosen: list[Service] = []
    if parts.agent:
        _local_host(settings)
    if settings.nats_url is None:
        chosen.append(_broker(settings, without_secrets(env)))
    home = settings.home

    async def api_ready() -> bool:
        return await http_ok(_shown_host(settings), api_port, "/readyz")

    async def scheduler_ready() -> bool:
        return (home / "run" / "scheduler.json").exists()

    async def agent_ready() -> bool:
        return (_agent_home(settings) / "agent.json").exists()

    logs_dir = home / "logs"
    chosen.append(Service("api", python("services.api"), env, logs_dir / "api.log", api_ready))
    (home / "run" / "scheduler.json").unlink(missing_ok=True)
    chosen.append(
        Service(
            "scheduler",
            python("services.scheduler"),
            without_secrets(env, keep=("TRAINYARD_DATABASE_URL", "TRAINYARD_NATS_URL")),
            logs_dir / "scheduler.log",
            scheduler_ready,
        )
    )
    if parts.reward:
        chosen.append(_reward(settings, env))
    if parts.agent:
        (_agent_home(settings) / "agent.json").unlink(missing_ok=True)
        (_agent_home(settings) / STOP_JOBS_FILE).unlink(missing_ok=True)
        grace = STOP_JOBS_SECONDS if parts.stop_jobs else 15.0
        chosen.append(
            Service(
                "agent",
                python("services.gpu_agent"),
                _agent_env(settings, env),
                logs_dir / "agent.log",
                agent_ready,
                stop_seconds=grace,
            )
        )
    for service in chosen:
        service.restart_cap = settings.restart_cap_seconds
    return chosen


def _agent_env(settings: Settings, env: dict[str, str]) -> dict[str, str]:
    """The agent reads no token of the api's; trainers with rewards get that of the reward service by its hand."""
    kept = without_secrets(env, keep=("TRAINYARD_NATS_URL", REWARD_TOKEN))
    token = settings.api_token
    return kept if token is None or settings.reward_url else {**kept, REWARD_TOKEN: token}


def _reward(settings: Settings, env: dict[str, str]) -> Service:
    port = settings.reward_port
    if port and not is_free("127.0.0.1", port):
        raise StackRefused(
            f"Port {port} (TRAINYARD_REWARD_PORT) is in use. Stop what listens there, set another port (0 takes any free one), or start with --no-reward."
        )
    told = settings.home / "run" / "reward.json"
    told.unlink(missing_ok=True)

    async def ready() -> bool:
        return told.exists()

    return Service(
        "reward", python("services.reward"), env, settings.home / "logs" / "reward.log", ready
    )


def _broker(settings: Settings, env: dict[str, str]) -> Service:
    port = settings.nats_port
    if port and not is_free("127.0.0.1", port):
        raise StackRefused(
            f"Port {port} (TRAINYARD_NATS_PORT) is in use. Stop what listens there, or set another port; 0 takes any free one."
        )
    try:
        broker = EmbeddedBroker(settings.home, port, store_mib=settings.nats_store_mib).prepare()
        argv = broker.command()
    except (BrokerMissing, BrokerConfigInvalid) as error:
        raise StackRefused(str(error)) from None

    async def ready() -> bool:
        return await is_healthy(settings.home, broker.url)

    return Service("broker", argv, env, settings.home / "logs" / "broker.log", ready)


def _local_host(settings: Settings) -> None:
    """Give the agent of this machine an id and a key, once."""
    path = _agent_home(settings) / "host.json"
    if path.exists():
        host = HostId(json.loads(path.read_text())["host_id"])
    else:
        host = new_host_id()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic_json(path, {"host_id": host})
    add_host_key(settings.home, host, create_host_key(settings.home, host))


def _agent_home(settings: Settings) -> Path:
    return settings.home / "agents" / "local"


def _api_port(settings: Settings) -> int:
    port = settings.api_port
    if port == 0:
        return free_port()
    if not is_free(settings.api_host, port):
        raise StackRefused(
            f"Port {port} (TRAINYARD_API_PORT) is in use. Stop what listens there, or set TRAINYARD_API_PORT to another port."
        )
    return port


def _shown_host(settings: Settings) -> str:
    return "127.0.0.1" if settings.api_host in {"0.0.0.0", "::"} else settings.api_host


def _announce(url: str, settings: Settings) -> None:
    print(f"Trainyard is ready at {url}  (API documentation: {url}/docs)", flush=True)  # noqa: T201
    print(f"Logs: {settings.home / 'logs'}   Stop with Ctrl-C; running trainers go on.", flush=True)  # noqa: T201


class _only_one:  # noqa: N801 - reads as a verb at its one use
    """Holds the home's lock, so that two stacks never share one home."""

    def __init__(self, home: Path) -> None:
        self._path = home / "run" / "up.lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise StackRefused(
                f"A stack already runs with TRAINYARD_HOME={self._path.parent.parent}. Use it, stop it, or set another TRAINYARD_HOME."
            ) from None

    def __exit__(self, *_: object) -> None:
        structlog.contextvars.clear_contextvars()
        if self._file is not None:
            self._file.close()
