"""Routes of administration: providers, their keys, stored rewards."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import TypeAdapter
from starlette.responses import Response

from services.reward.administration import (
    Administration,
    JobProviderBody,
    ProviderBody,
    RewardBody,
)
from services.reward.answering import encode
from services.reward.routes import Services, json_response, parse
from services.reward.trial import try_provider
from shared.errors import TrainyardError

router = APIRouter()
PROVIDER: TypeAdapter[ProviderBody] = TypeAdapter(ProviderBody)
PRIVATE: TypeAdapter[JobProviderBody] = TypeAdapter(JobProviderBody)
REWARD_BODY: TypeAdapter[RewardBody] = TypeAdapter(RewardBody)


def _administration(services: Services) -> Administration:
    if services.administration is None:
        raise TrainyardError("rules_only", 404, "Rules only", "仅规则", "This service runs beside a trainer and scores by rules only; providers are set at the central reward service.", "本服务运行在训练进程旁，仅按规则评分；评判服务请在中心奖励服务上设置。")  # fmt: skip
    return services.administration


@router.get("/v1/providers", summary="Providers and their state")
async def providers(services: Services) -> Response:
    """Return every provider with its limits, its breaker and what it was asked; keys as their last four characters."""
    return json_response(encode(_administration(services).all()))


@router.get("/v1/providers/{name}", summary="One provider")
async def provider(name: str, services: Services) -> Response:
    """Return one provider."""
    return json_response(encode(_administration(services).shown(name)))


@router.put("/v1/providers/{name}", summary="Configure a provider")
async def put_provider(name: str, request: Request, services: Services) -> Response:
    """Store a provider; `api_key` is sealed and never shown again. A new `api_base` without a key clears the key."""
    body = parse(PROVIDER, await request.body())
    return json_response(encode(await _administration(services).put(name, body)))


@router.delete("/v1/providers/{name}", summary="Remove a provider", status_code=204)
async def delete_provider(name: str, services: Services) -> Response:
    """Forget a provider and its key."""
    await _administration(services).remove(name)
    return Response(status_code=204)


@router.post("/v1/providers/{name}/test", summary="Try a provider")
async def test_provider(name: str, request: Request, services: Services) -> Response:
    """Judge one small answer, and answers that no judge may reward; say what came of it."""
    administration = _administration(services)
    administration.shown(name)
    return json_response(encode(await try_provider(services.scoring, name, request)))


@router.put("/v1/jobs/{job_uuid}/provider", summary="The private judge of a job", status_code=204)
async def put_private(job_uuid: str, request: Request, services: Services) -> Response:
    """Set the judge that a job brings itself; specs of this job name it as provider `job`."""
    body = parse(PRIVATE, await request.body())
    _administration(services).put_private(job_uuid[:64], body)
    return Response(status_code=204)


@router.get("/v1/rewards", summary="Stored rewards")
async def rewards(services: Services) -> Response:
    """Return all stored rewards."""
    return json_response(encode(await _administration(services).rewards()))


@router.post("/v1/rewards", summary="Store a reward", status_code=201)
async def post_reward(request: Request, services: Services) -> Response:
    """Store a reward as the next version of its name; score with its id as `reward_id`."""
    body = parse(REWARD_BODY, await request.body())
    stored = await _administration(services).store_reward(body)
    return Response(encode(stored), status_code=201, media_type="application/json")


@router.get("/v1/usage", summary="What judges were asked and what they cost")
async def usage(
    services: Services,
    job_uuid: Annotated[str | None, Query(max_length=64)] = None,
    since: Annotated[str | None, Query(alias="from", max_length=10)] = None,
    until: Annotated[str | None, Query(alias="to", max_length=10)] = None,
) -> Response:
    """Return sums by day (UTC), job, provider and model; at most a second old."""
    _administration(services)
    assert services.meter is not None
    return json_response(encode(await services.meter.usage(job_uuid, since, until)))
