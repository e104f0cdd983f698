"""Judges: cache, then one call for simultaneous equals, then budget, pace, provider, and at last the fallback chain."""

from __future__ import annotations

import asyncio
import secrets
import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from services.reward.client import Call
from services.reward.core.budget import Reservation
from services.reward.core.cache_key import cache_key
from services.reward.core.judging import (
    DUEL_SCHEMA,
    PROMPT_VERSION,
    SCORE_SCHEMA,
    Message,
    Read,
    duel_messages,
    read_duel,
    read_score,
    repair_messages,
    score_messages,
)
from services.reward.core.texts import Sample
from services.reward.core.verdict import Verdict, failed, scored
from services.reward.directory import Directory
from services.reward.ports import Context
from services.reward.provider_calls import Failed, ProviderCalls
from services.reward.store.purses import Purses
from services.reward.store.verdict_cache import VerdictCache
from shared.rewards.scores import ErrorCode
from shared.rewards.specs import Judge

Work = Callable[[], Awaitable[Verdict]]


@dataclass(frozen=True, slots=True)
class Asking:
    """What is asked of a judge: messages around a fresh mark, and how the answer is read."""

    messages: Callable[[str], list[Message]]
    read: Callable[[str], Read]
    name: str
    schema: Mapping[str, Any]


@dataclass(slots=True)
class _Flight:
    task: asyncio.Task[Verdict]
    waiting: int = 0


MARK_BYTES: Final = 6
_FALLS_BACK: Final = frozenset(
    {
        ErrorCode.PROVIDER_AUTH,
        ErrorCode.PROVIDER_QUOTA_EXHAUSTED,
        ErrorCode.PROVIDER_RATE_LIMITED,
        ErrorCode.PROVIDER_REFUSED,
        ErrorCode.PROVIDER_TIMEOUT,
        ErrorCode.PROVIDER_UNAVAILABLE,
        ErrorCode.PROVIDER_UNKNOWN,
        ErrorCode.CIRCUIT_OPEN,
    }
)
"""What another provider may do better; a filtered completion or an empty budget is no reason to ask one."""


class JudgeDesk:
    """The port `Judges` over the providers of a directory."""

    def __init__(
        self,
        directory: Directory,
        cache: VerdictCache,
        purses: Purses,
        wall: Callable[[], float],
        spared: Callable[[str, str, str | None, bool], None],
    ) -> None:
        self._directory = directory
        self._cache = cache
        self._purses = purses
        self._wall = wall
        self._spared = spared
        self._flights: dict[str, _Flight] = {}

    def finished(self, context: Context) -> float | None:
        """Forget the purse of a request; return the least that its and its job's budget have left."""
        names = [
            context.request_id,
            *([] if context.job_uuid is None else [f"job:{context.job_uuid}"]),
        ]
        left = [r for r in map(self._purses.remaining, names) if r is not None]
        self._purses.close(context.request_id)
        return min(left, default=None)

    def currency(self, provider: str, context: Context) -> str | None:
        """Return in what a provider's costs are counted."""
        return self._directory.currency(provider, context)

    def peek(self, spec: Judge, sample: Sample, context: Context) -> Verdict | None:
        """Return a verdict that is in memory: no task, no wait; None where it has to be looked for or asked."""
        if context.cache != "use" or not _keeps(spec):
            return None
        kept = self._cache.peek(self._score_key(spec, sample, context))
        return None if kept is None else self._kept(spec, kept, context)

    async def judge(self, spec: Judge, sample: Sample, context: Context) -> Verdict:
        """Return the score of one completion, mapped to 0..1."""
        solution = sample.solution if spec.show_solution else None
        key = self._score_key(spec, sample, context)

        def messages(mark: str) -> list[Message]:
            return score_messages(
                spec.rubric, spec.scale, sample.prompt, sample.completion, solution, mark
            )

        async def work() -> Verdict:
            asking = Asking(messages, lambda t: read_score(t, spec.scale), "score", SCORE_SCHEMA)
            return await self._sampled(spec, context, asking)

        return await self._once(spec, context, key, work)

    async def duel(
        self, spec: Judge, prompt: str, first: str, second: str, context: Context
    ) -> Verdict:
        """Return what the first gets against the second: 1, 0.5 or 0; both orders are asked and must agree to be a win."""
        if first == second:
            return scored(0.5, "equal")
        forth, back = await asyncio.gather(
            self._one_order(spec, prompt, first, second, context),
            self._one_order(spec, prompt, second, first, context),
        )
        lost = forth if forth.error else back
        if lost.error is not None:
            return replace(lost, cost=forth.cost + back.cost)
        assert forth.reward is not None
        assert back.reward is not None
        agreed = forth.reward == 1 - back.reward
        return replace(
            forth,
            reward=forth.reward if agreed else 0.5,
            reason="duel" if agreed else "orders_disagree",
            cost=forth.cost + back.cost,
            cached=forth.cached and back.cached,
            input_tokens=forth.input_tokens + back.input_tokens,
            output_tokens=forth.output_tokens + back.output_tokens,
        )

    async def _one_order(
        self, spec: Judge, prompt: str, first: str, second: str, context: Context
    ) -> Verdict:
        key = cache_key(
            kind="duel", spec=_spec_text(spec), prompt_version=PROMPT_VERSION,
            prompt=prompt, first=first, second=second,
            base=self._directory.base_of(spec.provider), job=_private(spec, context),
        )  # fmt: skip

        def messages(mark: str) -> list[Message]:
            return duel_messages(spec.rubric, prompt, first, second, mark)

        async def work() -> Verdict:
            asking = Asking(messages, read_duel, "duel", DUEL_SCHEMA)
            return await self._sampled(spec, context, asking)

        return await self._once(spec, context, key, work)

    def _score_key(self, spec: Judge, sample: Sample, context: Context) -> str:
        return cache_key(
            kind="score", spec=_spec_text(spec), prompt_version=PROMPT_VERSION, prompt=sample.prompt,
            completion=sample.completion, solution=sample.solution if spec.show_solution else None,
            base=self._directory.base_of(spec.provider), job=_private(spec, context),
        )  # fmt: skip

    def _kept(self, spec: Judge, kept: Mapping[str, Any], context: Context) -> Verdict:
        self._spared(spec.provider, spec.model, context.job_uuid, True)
        return Verdict(
            kept["reward"], kept["reason"], kept["extracted"], cached=True, provider=kept["provider"], attempts=0
        )  # fmt: skip

    async def _once(self, spec: Judge, context: Context, key: str, work: Work) -> Verdict:
        """Take it from the cache, or join whoever asks for the same, or ask; only verdicts are kept."""
        keeps = _keeps(spec)
        if keeps and context.cache == "use":
            kept = await self._cache.get(key)
            if kept is not None:
                return self._kept(spec, kept, context)
        if context.cache == "bypass" or not keeps:
            return await work()
        # one budget, one flight: a job never pays for another one's call, nor is refused for its empty purse
        flight_key = f"{key}:{context.job_uuid}:{context.cache}"
        flight = self._flights.get(flight_key)
        joined = flight is not None
        if flight is None:
            flight = _Flight(asyncio.create_task(self._fly(key, work), name="judge"))
            self._flights[flight_key] = flight
            flight.task.add_done_callback(lambda _: self._flights.pop(flight_key, None))
        verdict = await _wait(flight)
        if joined:
            self._spared(spec.provider, spec.model, context.job_uuid, False)
            return replace(verdict, deduplicated=True, cost=0.0, input_tokens=0, output_tokens=0)
        return verdict

    async def _fly(self, key: str, work: Work) -> Verdict:
        verdict = await work()
        if verdict.error is None and not verdict.fallback:
            self._cache.put(
                key,
                {
                    "reward": verdict.reward,
                    "reason": verdict.reason,
                    "extracted": verdict.extracted,
                    "provider": verdict.provider,
                },
            )
        return verdict

    async def _sampled(
        self,
        spec: Judge,
        context: Context,
        asking: Asking,
    ) -> Verdict:
        """Ask `samples` times and take the median; one without a verdict makes the whole one without."""
        asked = await asyncio.gather(
            *(self._chain(spec, context, asking) for _ in range(spec.samples))
        )
        lost = next((v for v in asked if v.error is not None), None)
        first = lost or asked[0]
        reward = None
        if lost is None:
            reward = statistics.median(v.reward for v in asked if v.reward is not None)
        return replace(
            first,
            reward=reward,
            cost=sum(v.cost for v in asked),
            input_tokens=sum(v.input_tokens for v in asked),
            output_tokens=sum(v.output_tokens for v in asked),
        )

    async def _chain(
        self,
        spec: Judge,
        context: Context,
        asking: Asking,
    ) -> Verdict:
        """Ask the provider, and those behind it in its fallback chain where it cannot."""
        cost, last = 0.0, None
        for place, (provider, model) in enumerate(
            self._directory.chain(spec.provider, spec.model, context)
        ):
            calls = await self._directory.calls(provider, context)
            if calls is None:
                last = last or failed(
                    ErrorCode.PROVIDER_UNKNOWN, f"no provider {provider} is configured"
                )
                continue
            verdict = await self._ask(calls, model, spec, context, asking)
            cost += verdict.cost
            verdict = replace(verdict, cost=cost, fallback=place > 0)
            if verdict.error not in _FALLS_BACK:
                return verdict
            last = last or verdict
        return replace(last, cost=cost) if last else failed(ErrorCode.PROVIDER_UNKNOWN, f"no provider {spec.provider} is configured")  # fmt: skip

    async def _ask(
        self,
        calls: ProviderCalls,
        model: str,
        spec: Judge,
        context: Context,
        asking: Asking,
    ) -> Verdict:
        """Ask one provider, and once more where its answer could not be read."""
        names = await self._open_purses(calls, context)
        if calls.provider.price(model) is None and self._is_limited(names):
            return failed(
                ErrorCode.PROVIDER_REFUSED,
                f"a budget is set, and nobody has said what {model} costs at {calls.provider.name}; give its price",
            )
        written = asking.messages(secrets.token_hex(MARK_BYTES))
        shown = f"{calls.provider.name}/{model}"
        total = Verdict(0.0, "", provider=shown, attempts=0)
        problem = ""
        for _ in range(2):
            call = Call(
                model,
                tuple(written),
                asking.name,
                asking.schema,
                spec.temperature,
                spec.max_tokens,
                spec.seed,
                context.job_uuid,
            )

            async def reserve(amount: float) -> Reservation | str:
                return await self._purses.reserve(names, amount)

            outcome = await calls.ask(
                call, context.deadline, context.priority, reserve, self._purses.settle
            )
            total = replace(
                total, cost=total.cost + outcome.cost, attempts=total.attempts + outcome.tries
            )
            if isinstance(outcome, Failed):
                refusal = outcome.refusal
                lost = failed(refusal.code, refusal.message, provider_code=refusal.provider_code)
                return replace(lost, cost=total.cost, attempts=total.attempts, provider=shown)
            reply = outcome.reply
            total = replace(
                total,
                input_tokens=total.input_tokens + reply.input_tokens,
                output_tokens=total.output_tokens + reply.output_tokens,
            )
            if reply.refused:
                return _lost(total, ErrorCode.JUDGE_REFUSED, "the judge refused to judge")
            found = (
                Read(None, problem="it was cut off") if reply.truncated else asking.read(reply.text)
            )
            if found.value is not None:
                return replace(total, reward=found.value, reason="judged", extracted=found.reason)
            problem = found.problem
            written = repair_messages(written, reply.text, problem)
        return _lost(
            total, ErrorCode.JUDGE_PARSE_FAILED, f"the judge's answer is not usable: {problem}"
        )

    async def _open_purses(self, calls: ProviderCalls, context: Context) -> tuple[str, ...]:
        day = datetime.fromtimestamp(self._wall(), UTC).date().isoformat()
        names = [f"day:{calls.provider.name}:{day}"]
        await self._purses.open(names[0], calls.provider.daily_budget, lasting=True)
        if context.job_uuid is not None:
            names.append(f"job:{context.job_uuid}")
            await self._purses.open(names[-1], context.job_max_cost, lasting=True)
        if context.max_cost is not None:
            names.append(context.request_id)
            await self._purses.open(names[-1], context.max_cost, lasting=False)
        return tuple(names)

    def _is_limited(self, names: tuple[str, ...]) -> bool:
        """Tell whether a budget of the request or the job is set; the daily cap is a default, not a wish."""
        purses = self._purses.ledger.purses
        return any(purses[n].limit is not None for n in names[1:] if n in purses)


async def _wait(flight: _Flight) -> Verdict:
    """Wait with others; a flight that nobody waits for any more is given up, and what it would cost with it."""
    flight.waiting += 1
    try:
        return await asyncio.shield(flight.task)
    finally:
        flight.waiting -= 1
        if flight.waiting == 0:
            flight.task.cancel()


def _keeps(spec: Judge) -> bool:
    return spec.cache if spec.cache is not None else spec.temperature == 0 and spec.samples == 1


@lru_cache(maxsize=256)
def _spec_text(spec: Judge) -> str:
    return spec.model_dump_json(exclude={"cache"})


def _private(spec: Judge, context: Context) -> str | None:
    """Return the job whose own provider is asked: nobody else may read its verdicts."""
    return context.job_uuid if spec.provider == "job" else None


def _lost(total: Verdict, code: ErrorCode, message: str) -> Verdict:
    return replace(total, reward=None, error=code, reason=str(code), message=message)
