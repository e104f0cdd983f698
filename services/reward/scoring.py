"""One request from its checked form to its answer: queue, deadline, verdicts in order, summary."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence

from services.reward.answering import Json, result, summary, version_of
from services.reward.checks import check_items, check_reward
from services.reward.core.texts import Sample, sample_of
from services.reward.core.verdict import Verdict, failed
from services.reward.engine import Engine
from services.reward.observe import RewardMetrics
from services.reward.ports import Context
from services.reward.settings import RewardSettings
from shared.errors import TrainyardError
from shared.rewards.scores import MAX_COMPLETION_BYTES, ErrorCode, Options, ScoreRequest
from shared.rewards.specs import Reward

CURRENCY = "CNY"
"""Where nothing was asked that costs anything."""


class Scoring:
    """Shared by all requests of a process; `in_flight` items are bounded by the settings."""

    def __init__(self, settings: RewardSettings, engine: Engine, metrics: RewardMetrics) -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = metrics
        self.in_flight = 0
        self.draining = False

    async def answer(self, request: ScoreRequest, reward: Reward) -> Json:
        """Return the response document.

        Raises TrainyardError: 422 for a batch that cannot be scored, 429 where the queue is full, 503 while the service
        stops, 502 where `fail` is `all` and an item has no verdict.
        """
        check_reward(reward)
        check_items(reward, request.items)
        began = time.perf_counter()
        samples = [sample_of(item) for item in request.items]
        context = self.context(request.options)
        verdicts, remaining = await self.scored(reward, samples, context)
        milliseconds = round((time.perf_counter() - began) * 1e3, 3)
        results = [
            result(item.id, verdict, milliseconds)
            for item, verdict in zip(request.items, verdicts, strict=True)
        ]
        if request.options.fail == "all" and any(v.error for v in verdicts):
            raise _without_verdict(verdicts)
        return {
            "request_id": context.request_id,
            "reward_version": version_of(reward),
            "results": results,
            "summary": summary(
                verdicts, milliseconds, self.engine.currency(reward, context) or CURRENCY, remaining
            ),
        }

    async def verdicts(
        self, reward: Reward, samples: Sequence[Sample], context: Context
    ) -> list[Verdict]:
        """Score within the queue's bound and count what came of it. Raises TrainyardError 429 or 503."""
        return (await self.scored(reward, samples, context))[0]

    async def scored(
        self, reward: Reward, samples: Sequence[Sample], context: Context
    ) -> tuple[list[Verdict], float | None]:
        """Likewise; return also what the budgets of the request and its job have left."""
        if self.draining:
            raise _busy(503, "draining", "The service is stopping; send it again in a moment.", "服务正在停止，请稍后重试。")  # fmt: skip
        if self.in_flight + len(samples) > self.settings.reward_queue and self.in_flight:
            raise _busy(429, "queue_full", f"{self.in_flight} items are being scored, and at most {self.settings.reward_queue} may wait; send it again in a moment.", f"正在处理 {self.in_flight} 个条目，最多允许 {self.settings.reward_queue} 个等待，请稍后重试。")  # fmt: skip
        self.in_flight += len(samples)
        try:
            long = [len(s.completion) > MAX_COMPLETION_BYTES for s in samples]
            fit = [s for s, is_long in zip(samples, long, strict=True) if not is_long]
            scored = iter(await self.engine.score(reward, fit, context))
        finally:
            self.in_flight -= len(samples)
            remaining = self.engine.finished(context)
        verdicts = [
            failed(ErrorCode.INVALID_ITEM, f"a completion has at most {MAX_COMPLETION_BYTES} characters")
            if is_long
            else next(scored)
            for is_long in long
        ]  # fmt: skip
        self.metrics.count(reward.type, verdicts)
        return verdicts, remaining

    def context(self, options: Options) -> Context:
        """Return what holds for a batch that is scored now."""
        return Context(
            request_id="req_" + uuid.uuid4().hex,
            deadline=asyncio.get_running_loop().time() + options.timeout_s,
            item_seconds=options.item_timeout_s or self.settings.reward_item_seconds,
            job_uuid=options.job_uuid,
            cache=options.cache,
            priority=options.priority,
            max_cost=options.max_cost,
            job_max_cost=options.job_max_cost,
        )


def _busy(status: int, code: str, en: str, zh: str) -> TrainyardError:
    return TrainyardError(code, status, "Busy", "繁忙", en, zh, headers={"Retry-After": "1"})


def _without_verdict(verdicts: Sequence[Verdict]) -> TrainyardError:
    lost = [v for v in verdicts if v.error is not None]
    first = lost[0]
    return TrainyardError(
        "no_verdict",
        502,
        "No verdict",
        "没有结果",
        f"{len(lost)} of {len(verdicts)} items have no verdict, and `fail` is all. The first: {first.error}: {first.message}.",
        f"{len(verdicts)} 个条目中有 {len(lost)} 个没有结果，而 `fail` 为 all。第一个：{first.error}：{first.message}。",
    )
