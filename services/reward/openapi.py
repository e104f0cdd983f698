"""The OpenAPI document: the routes parse their bodies themselves, so what they take is added here."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from services.reward.admin_routes import PRIVATE, PROVIDER, REWARD_BODY
from services.reward.routes import REMOTE, REQUEST
from services.reward.trial import TRIAL
from shared.rewards.scores import ScoreResponse
from shared.rewards.specs import REWARD

_REF: Final = "#/components/schemas/{model}"
BODIES: Final[dict[tuple[str, str], TypeAdapter[Any]]] = {
    ("/v1/score", "post"): REQUEST,
    ("/v1/score:validate", "post"): REWARD,
    ("/get_reward", "post"): REMOTE,
    ("/v1/rewards", "post"): REWARD_BODY,
    ("/v1/providers/{name}", "put"): PROVIDER,
    ("/v1/providers/{name}/test", "post"): TRIAL,
    ("/v1/jobs/{job_uuid}/provider", "put"): PRIVATE,
}


def openapi_of(app: FastAPI) -> dict[str, Any]:
    """Return the document with every body, and the answer of `POST /v1/score`."""
    found: dict[str, Any] = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for (path, verb), adapter in BODIES.items():
        schema = _shared(adapter.json_schema(ref_template=_REF), schemas)
        found["paths"][path][verb]["requestBody"] = {
            "required": adapter is not TRIAL,
            "content": {"application/json": {"schema": schema}},
        }
    answer = TypeAdapter(ScoreResponse).json_schema(ref_template=_REF, mode="serialization")
    content = {"application/json": {"schema": _shared(answer, schemas)}}
    found["paths"]["/v1/score"]["post"]["responses"]["200"]["content"] = content
    return found


def _shared(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Move the parts of a schema to where the document keeps them."""
    schemas.update(schema.pop("$defs", {}))
    return schema
