"""What every route gets: the services passed to `create_app`, the language, the parsed body."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection

from services.api.jobs.placement import KnownHost
from services.api.limits import PARSED
from services.api.link import BusLink
from services.api.monitoring.hub import Hub
from services.api.observe import ApiMetrics
from services.api.projections.runner import Projector
from services.api.settings import ApiSettings
from shared.bus.embedded import BrokerHealth
from shared.clock import Clock
from shared.db import Database
from shared.disk.volumes import VolumeWatch, stack_folders
from shared.errors import FieldProblem, invalid
from shared.jobs.reasons import Lang
from shared.keyring import Keyring
from shared.language import language


def _nothing() -> None:
    return None


@dataclass
class ApiServices:
    """Everything that the api is made of; `create_app` and the background tasks share one."""

    settings: ApiSettings
    main: Database
    telemetry: Database
    link: BusLink
    clock: Clock
    keyring: Keyring
    disks: VolumeWatch = field(init=False)
    """Folders of this machine that the api and what it needs write to."""
    hub: Hub = field(default_factory=Hub)
    """Committed frames on their way to live viewers."""
    metrics: ApiMetrics = field(default_factory=ApiMetrics)
    wake_outbox: Callable[[], None] = _nothing
    """Called after a request was committed, so that it is published at once."""
    hosts_seen: tuple[float, list[KnownHost]] | None = None
    """Hosts as of a moment of the boot clock; a burst of submits asks for them once."""
    outbox_stuck: str | None = None
    """Why requests do not reach their stream although the broker is connected, or None."""
    broker_seen: tuple[float, BrokerHealth] | None = None
    """What the broker said last about itself, and when (boot clock)."""
    projector: Projector | None = None
    """The running `Projector`, once there is a bus."""

    def __post_init__(self) -> None:
        """Name the volumes to look at."""
        self.disks = VolumeWatch(stack_folders(self.settings))


def services_of(connection: HTTPConnection) -> ApiServices:
    """Return the services of the app that serves this connection."""
    found: ApiServices = connection.app.state.services
    return found


def lang_of(connection: HTTPConnection) -> Lang:
    """Return the language of the client."""
    return language(connection.headers.get("accept-language"))


def body_of(connection: HTTPConnection) -> Any:
    """Return the parsed JSON body. Raises TrainyardError 422 when there is none."""
    if PARSED not in connection.scope:
        raise invalid(
            [
                FieldProblem(
                    "body",
                    None,
                    "The body is missing; send a JSON object.",
                    "缺少请求体，请发送 JSON 对象。",
                    None,
                    "required",
                )
            ]
        )
    return connection.scope[PARSED]


# Coroutines, since the framework sends a plain function to a thread.
async def _services(connection: HTTPConnection) -> ApiServices:
    return services_of(connection)


async def _lang(connection: HTTPConnection) -> Lang:
    return lang_of(connection)


async def _body(connection: HTTPConnection) -> Any:
    return body_of(connection)


Services = Annotated[ApiServices, Depends(_services)]
Language = Annotated[Lang, Depends(_lang)]
JsonBody = Annotated[Any, Depends(_body)]
