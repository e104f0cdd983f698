"""The built user interface at `/`, or a note with links where it was not built."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from shared.settings import PROJECT_ROOT

DIST = PROJECT_ROOT / "frontend" / "dist"
_API_PREFIXES = ("api/", "docs", "openapi.json", "livez", "readyz", "metrics")
_LINKS = {"docs": "/docs", "openapi": "/openapi.json", "jobs": "/api/v1/jobs/", "health": "/readyz"}
_NOTE = (
    "<!doctype html><meta charset=utf-8><title>Trainyard</title>"
    "<h1>Trainyard</h1><p>The api runs. This version has no web pages; the documentation of the API lets you try it in a browser.</p>"
    "<p>api 正在运行。此版本没有网页界面，可在 API 文档页中试用接口。</p><ul>"
    + "".join(f'<li><a href="{path}">{name}</a></li>' for name, path in _LINKS.items())
    + "</ul>"
)


class SinglePage(StaticFiles):
    """Files of the build; every other path is the application's own and gets its page."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file, or the page for a path without an ending that is not the api's."""
        try:
            return await super().get_response(path, scope)
        except HTTPException as error:
            own = path.startswith(_API_PREFIXES) or "." in path.rpartition("/")[2]
            if error.status_code != 404 or own:
                raise
            return await super().get_response("index.html", scope)


def install_web(app: FastAPI, dist: Path = DIST) -> None:
    """Serve the interface; call it last, since it takes every path that is left."""
    if (dist / "index.html").is_file():
        app.mount("/", SinglePage(directory=dist, html=True), name="web")
        return

    @app.get("/", include_in_schema=False)
    async def note(accept_json: bool = False) -> Response:
        return JSONResponse(_LINKS) if accept_json else HTMLResponse(_NOTE)
