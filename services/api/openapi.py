"""The OpenAPI document: routes, the job body derived from the specs, and the problem document.

`python -m services.api.openapi FILE` writes it; a test keeps `docs/reference/openapi.json` up to date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from shared.jobs.reasons import Lang
from shared.specs import job_schema

PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457. `detail` says what to do; `errors` names every wrong field.",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "instance": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {
                    "field": {"type": "string"},
                    "value": {},
                    "message": {"type": "string"},
                    "allowed": {},
                    "code": {"type": "string"},
                },
            },
        },
    },
}
_REFERENCE = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def openapi_of(app: FastAPI) -> dict[str, Any]:
    """Return the document, made once an app."""
    if app.openapi_schema is None:
        app.openapi_schema = _document(app)
    return app.openapi_schema


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    body = job_schema("#/components/schemas/{model}")
    schemas.update(body.pop("$defs", {}))
    schemas["JobSpec"] = body
    schemas["Problem"] = PROBLEM
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}, {}]
    for path in document["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            responses.pop("422", None)
            responses["default"] = {
                "description": "A problem document that says what is wrong and what to do",
                "content": _REFERENCE,
            }
    return document


def render() -> str:
    """Return the document as it lies in the repository."""
    from services.api.app import bare_app  # noqa: PLC0415 - the app imports this module

    async def unused(uuid: str, lang: Lang) -> dict[str, Any]:
        raise NotImplementedError(uuid, lang)

    text = json.dumps(bare_app(unused).openapi(), indent=1, ensure_ascii=False, sort_keys=True)
    return text + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
