"""`create_app`: routes, the gate in front of them, problems behind them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from services.reward.admin_routes import router as admin_routes
from services.reward.gate import Gate
from services.reward.openapi import openapi_of
from services.reward.problems import install_problems
from services.reward.routes import RewardServices, router

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(services: RewardServices, lifespan: Lifespan | None = None) -> FastAPI:
    """Return the application; it starts nothing by itself."""
    app = FastAPI(
        title="Trainyard rewards",
        version="0.1.0",
        description="Scores completions. An item without a verdict has the reward null, never 0.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    app.include_router(router)
    app.include_router(admin_routes)
    install_problems(app)
    app.openapi = lambda: openapi_of(app)  # type: ignore[method-assign]
    app.add_middleware(Gate, settings=services.scoring.settings)
    return app
