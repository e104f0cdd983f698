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
_REFUSALS = {
    "400": "The request cannot be read, or the Host header is not allowed",
    "401": "The token is missing or wrong",
    "403": "The origin of the page, or the joining code, is refused",
    "404": "It does not exist, or was deleted",
    "408": "The body did not arrive in time",
    "409": "Its state forbids it",
    "413": "The body is too large",
    "415": "The body is not plain JSON",
    "422": "Something in the address or the body is wrong; `errors` names it",
    "500": "A defect of the api; its log has the request_id",
    "503": "The database or the broker is away for the moment; Retry-After says when to try again",
}
_EVERYWHERE = ("400", "401", "422", "500", "503")
_WRITING = ("403", "408", "413", "415")


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
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for parameter in operation.get("parameters", []):
                _without_nul(parameter["schema"])
            responses = operation["responses"]
            responses.pop("422", None)
            for status in refusals(path, method):
                told = {"description": _REFUSALS[status], "content": dict(_REFERENCE)}
                known = responses.setdefault(status, told)
                known["content"] = {**known["content"], **_REFERENCE}
    return document


def _without_nul(schema: dict[str, Any]) -> None:
    """Say of each text in an address what `limits` refuses everywhere."""
    for part in schema.get("anyOf", [schema]):
        if part.get("type") == "string" and not part.keys() & {"pattern", "enum"}:
            part["pattern"] = "^[^\\u0000]*$"


def refusals(path: str, method: str) -> list[str]:
    """Return every status with which an operation can refuse; a problem document goes with each."""
    writes = method != "get"
    named = "{" in path
    found = [*_EVERYWHERE, *(_WRITING if writes else ())]
    found += ["404"] if named else []
    found += ["409"] if writes and (named or path.startswith("/api/v1/jobs")) else []
    # A label that several hosts bear is a conflict, also when it is read.
    found += ["409"] if path == "/api/v1/hosts/{host}" and not writes else []
    return sorted(found)


def render() -> str:
    """Return the document as it lies in the repository."""
    from services.api.app import bare_app  # noqa: PLC0415 - the app imports this module

    async def unused(uuid: str, lang: Lang) -> dict[str, Any]:
        raise NotImplementedError(uuid, lang)

    text = json.dumps(bare_app(unused).openapi(), indent=1, ensure_ascii=False, sort_keys=True)
    return text + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
