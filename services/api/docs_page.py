"""`/docs` without internet: Swagger UI from the files that a wheel carries, started by a script of our own.

No inline script and no other origin, so the policy of every other page holds here too.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, HTMLResponse, Response

router = APIRouter(include_in_schema=False)
ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css")
DAY = {"cache-control": "private, max-age=86400"}
_FOLDER = Path(str(files("fastapi_offline"))) / "static"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Trainyard API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/assets/start.js"></script>
</body>
</html>
"""
_START = """"use strict";
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  validatorUrl: null,
});
"""


@router.get("/docs")
async def page() -> Response:
    """Return the page."""
    return HTMLResponse(_PAGE)


@router.get("/docs/assets/start.js")
async def start() -> Response:
    """Return the script that starts Swagger UI."""
    return Response(_START, media_type="text/javascript", headers=DAY)


def _add(name: str) -> None:
    async def asset() -> Response:
        return FileResponse(_FOLDER / name, headers=DAY)

    router.add_api_route(f"/docs/assets/{name}", asset, methods=["GET"])


for _name in ASSETS:
    _add(_name)
