"""`create_app`: routes, checks in front of them, problems behind them; everything it uses is passed in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from services.api.auth import Gate
from services.api.checkpoints.routes import router as checkpoint_routes
from services.api.deps import ApiServices
from services.api.docs_page import router as docs_page
from services.api.health import router as health_routes
from services.api.hosts.routes import router as host_routes
from services.api.jobs.routes import router as job_routes
from services.api.jobs.service import read_job
from services.api.limits import BodyGate
from services.api.monitoring.live import live_routes
from services.api.monitoring.routes import ReadJob, telemetry_routes
from services.api.observe import Observe
from services.api.openapi import openapi_of
from services.api.problems import install_problems
from services.api.rewards.routes import router as reward_routes
from services.api.secrets.routes import router as secret_routes
from services.api.strict_request import only_what_is_known
from services.api.web import install_web
from shared.jobs.reasons import Lang

VERSION = "0.1.0"
DESCRIPTION = (
    "Self-hosted post-training for large language models. Errors are `application/problem+json` (RFC 9457), in English "
    "or Chinese by `Accept-Language`."
)
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(services: ApiServices, lifespan: Lifespan | None = None) -> FastAPI:
    """Return the application. It starts nothing by itself: `lifespan` runs the background tasks in production."""
    app = bare_app(_reader(services), lifespan)
    app.state.services = services
    app.add_middleware(BodyGate)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(services.settings.origins),
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Accept-Language"],
        expose_headers=["Location", "Retry-After", "X-Request-Id"],
    )
    app.add_middleware(Gate, settings=services.settings)
    # Added last, so it is the outermost: also a refusal by the layers within is timed and bears the request's id.
    app.add_middleware(Observe, metrics=services.metrics)
    install_web(app)
    return app


def bare_app(read: ReadJob, lifespan: Lifespan | None = None) -> FastAPI:
    """Return the routes without anything around them; the OpenAPI document is made from this."""
    app = FastAPI(
        title="Trainyard",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(only_what_is_known)],
    )
    app.include_router(docs_page)
    for router in (
        job_routes, secret_routes, checkpoint_routes, host_routes, reward_routes, health_routes,
    ):  # fmt: skip
        app.include_router(router)
    app.include_router(telemetry_routes(read))
    app.include_router(live_routes(read))
    install_problems(app)
    app.openapi = lambda: openapi_of(app)  # type: ignore[method-assign]
    return app


def _reader(services: ApiServices) -> ReadJob:
    async def read(uuid: str, lang: Lang) -> dict[str, Any]:
        return (await read_job(services, uuid, lang)).model_dump(mode="json")

    return read
