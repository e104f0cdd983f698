"""The routes of the service; what they do is in `scoring`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import TypeAdapter, ValidationError
from starlette.responses import JSONResponse, Response

from services.reward.administration import Administration
from services.reward.answering import encode, version_of
from services.reward.checks import check_reward
from services.reward.meter import Meter
from services.reward.openrlhf import RemoteRequest, remote_answer
from services.reward.problems import spec_problem
from services.reward.repeats import LONGEST_KEY, Repeats
from services.reward.scoring import Scoring
from shared.errors import FieldProblem, TrainyardError, invalid, not_found
from shared.rewards.rule_specs import MathVerify
from shared.rewards.scores import Options, ScoreRequest
from shared.rewards.specs import REWARD, Reward

T = TypeVar("T")
REQUEST: TypeAdapter[ScoreRequest] = TypeAdapter(ScoreRequest)
REMOTE: TypeAdapter[RemoteRequest] = TypeAdapter(RemoteRequest)
DEFAULT_REMOTE = MathVerify(type="math_verify")
router = APIRouter()


@dataclass
class RewardServices:
    """Everything the routes use."""

    scoring: Scoring
    repeats: Repeats
    administration: Administration | None = None
    """None in the rules-only mode."""
    meter: Meter | None = None
    """Likewise."""
    ready: bool = False
    asked_at: float = 0.0
    """When the last request came, on the monotonic clock."""


async def _services(request: Request) -> RewardServices:
    found: RewardServices = request.app.state.services
    found.asked_at = time.monotonic()
    return found


Services = Annotated[RewardServices, Depends(_services)]


@router.post("/v1/score", summary="Score a batch of completions")
async def score(request: Request, services: Services) -> Response:
    """Return one result for each item, in order; an item that could not be scored has the reward null, never 0."""
    body = await request.body()
    asked = parse(REQUEST, body)
    reward = await resolve(asked, services)
    key = request.headers.get("idempotency-key")

    async def work() -> bytes:
        began = time.perf_counter()
        document = encode(await services.scoring.answer(asked, reward))
        services.scoring.metrics.seconds.observe(time.perf_counter() - began)
        return document

    if key is None:
        return json_response(await _while_connected(request, work()))
    if not 0 < len(key) <= LONGEST_KEY:
        raise invalid([FieldProblem("Idempotency-Key", None, f"Idempotency-Key must have 1 to {LONGEST_KEY} characters.", f"Idempotency-Key 应为 1 到 {LONGEST_KEY} 个字符。")])  # fmt: skip
    document, replayed = await services.repeats.once(key, body, work)
    return json_response(document, {"Idempotent-Replayed": "true"} if replayed else {})


@router.post("/v1/score:validate", summary="Check a reward without scoring")
async def validate(request: Request) -> Response:
    """Return the version and the full form of a reward, or what is wrong with it."""
    reward = parse(REWARD, await request.body(), "reward")
    check_reward(reward)
    return json_response(
        encode({"valid": True, "reward_version": version_of(reward), "reward": REWARD.dump_python(reward, mode="json")})
    )  # fmt: skip


@router.post("/get_reward", summary="OpenRLHF's remote reward contract")
async def get_reward(request: Request, services: Services) -> Response:
    """Score `{query, prompts, labels}` by comparing boxed answers with the labels."""
    asked = parse(REMOTE, await request.body())
    context = services.scoring.context(Options(timeout_s=170.0))  # OpenRLHF gives up after 180 s
    verdicts = services.scoring.verdicts(DEFAULT_REMOTE, asked.samples(), context)
    return json_response(encode(remote_answer(await _while_connected(request, verdicts))))


@router.get("/livez", summary="Liveness")
@router.get("/health/live", include_in_schema=False)
async def livez(services: Services) -> dict[str, str]:
    """Answer while the event loop runs."""
    return {"status": "ok"}


@router.get("/readyz", summary="Readiness")
@router.get("/health/ready", include_in_schema=False)
async def readyz(services: Services) -> JSONResponse:
    """Answer 200 once it scores, else 503: while it starts, and while it stops."""
    ready = services.ready and not services.scoring.draining
    body = {
        "status": "ready" if ready else "not_ready",
        "in_flight": services.scoring.in_flight,
        "mode": "rules_only" if services.scoring.settings.reward_rules_only else "full",
    }
    return JSONResponse(body, status_code=200 if ready else 503)


@router.get("/metrics", summary="Prometheus metrics")
async def metrics(services: Services) -> Response:
    """Return counters and gauges in the Prometheus text format."""
    services.scoring.metrics.waiting.set(services.scoring.in_flight)
    return Response(
        generate_latest(services.scoring.metrics.registry), media_type=CONTENT_TYPE_LATEST
    )


def parse(adapter: TypeAdapter[T], body: bytes, field: str = "") -> T:
    """Return a checked body. Raises TrainyardError 422."""
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        raise spec_problem(error, field) from None


async def resolve(request: ScoreRequest, services: RewardServices) -> Reward:
    """Return the reward that a request names. Raises TrainyardError 422 or 404."""
    if request.reward is not None and request.reward_id is None:
        return request.reward
    if request.reward_id is None or request.reward is not None:
        raise invalid([FieldProblem("reward", None, "Give either reward or reward_id.", "请提供 reward 或 reward_id 之一。", code="required")])  # fmt: skip
    if services.administration is None:
        raise not_found("stored reward", "已保存的奖励", request.reward_id)
    return await services.administration.reward(request.reward_id)


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await `work`; give it up when the client goes away, so that nobody pays for an answer that nobody reads."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise TrainyardError("client_closed", 499, "Closed", "已关闭", "The client has gone.", "客户端已断开。")  # fmt: skip
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_response(body: bytes, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON answer that was encoded already."""
    return Response(body, media_type="application/json", headers=headers)
