"""A provider in use: its pace, its breaker, and the one retry loop there is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from services.reward.client import NO_ANSWER, Call, Client, Reply
from services.reward.core import breaker as breakers
from services.reward.core import rate, retry
from services.reward.core.breaker import Breaker
from services.reward.core.budget import Price, Reservation, cost_of, estimate
from services.reward.core.judging import PLAINER, Mode
from services.reward.core.provider_errors import Effect, Refusal
from services.reward.pace import Pace
from services.reward.providers import Provider
from shared.log import logger
from shared.rewards.scores import ErrorCode

LOG = logger("reward.provider")
SHUT_SECONDS: Final = 300.0
"""A wrong key or an empty account is looked at again after this long."""


@dataclass(frozen=True, slots=True)
class Paid:
    """A reply, and what all tries together cost and took."""

    reply: Reply
    cost: float
    tries: int


@dataclass(frozen=True, slots=True)
class Failed:
    """No reply; what was spent on the way."""

    refusal: Refusal
    cost: float
    tries: int


@dataclass(slots=True)
class Stats:
    """What a provider was asked since the start of the process."""

    calls: int = 0
    errors: int = 0
    rate_limited: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    by_code: dict[str, int] = field(default_factory=dict)


Reserve = Callable[[float], Awaitable[Reservation | str]]
Settle = Callable[[Reservation, float], None]
Told = Callable[[Provider, str, str | None, Reply | Refusal, float, float], None]
"""(provider, model, job, outcome, seconds, cost): one call that was made."""
Failing = Callable[[Provider, Refusal, bool], None]
"""(provider, its last word, whether a person must act): it is not asked for a while."""


class ProviderCalls:
    """All calls to one provider. `now`: the event loop's clock."""

    def __init__(
        self,
        provider: Provider,
        client: Client,
        now: Callable[[], float],
        told: Told,
        failing: Failing,
    ) -> None:
        self.provider = provider
        self.stats = Stats()
        self.breaker = Breaker()
        self.pace = Pace(rate.told(provider.rpm, provider.tpm), provider.concurrency, now)
        self._client = client
        self.now = now
        self._told = told
        self._failing = failing
        self._modes: dict[str, Mode] = {}
        self._shut_for: dict[str, tuple[float, Refusal]] = {}

    async def ask(
        self,
        call: Call,
        deadline: float,
        priority: Literal["train", "eval"],
        reserve: Reserve,
        settle: Settle,
    ) -> Paid | Failed:
        """Ask until there is a reply, it makes no more sense, or the deadline is near.

        Before each try its highest cost is set aside; what a try cost is settled when it is known. A call whose answer was
        lost may have been billed, so it counts as what was set aside.
        """
        tries, cost = 0, 0.0
        while True:
            refusal = self._closed(call.model)
            if refusal is not None:
                return Failed(refusal, cost, tries)
            outcome, paid = await self._try(call, deadline, priority, reserve, settle)
            if paid is not None:
                tries += 1
                cost += paid
            if isinstance(outcome, Reply):
                return Paid(outcome, cost, tries)
            if outcome.effect is Effect.DEGRADE and self._plainer(call.model):
                continue  # a parameter, not the provider: asked once more without it, and remembered
            again = retry.after(outcome, tries, random.random(), deadline - self.now())
            if paid is None or again is None:
                return Failed(outcome, cost, tries)
            await asyncio.sleep(again.seconds)

    async def _try(
        self,
        call: Call,
        deadline: float,
        priority: Literal["train", "eval"],
        reserve: Reserve,
        settle: Settle,
    ) -> tuple[Reply | Refusal, float | None]:
        """Make one call. The second value is its cost, None where no call was made."""
        tokens = sum(estimate(m["content"]) for m in call.messages)
        price = self.provider.price(call.model) or Price(0.0, 0.0)
        highest = cost_of(price, tokens, call.max_tokens)
        await self.pace.enter(tokens + call.max_tokens, priority)
        try:
            closed = self._closed(call.model) or self._admit()
            if closed is not None:
                return closed, None
            reservation = await reserve(highest)
            if isinstance(reservation, str):
                self._unadmit()
                return _no_budget(reservation, highest), None
            return await self._send(call, deadline, reservation, settle, price, tokens)
        finally:
            self.pace.leave()

    async def _send(
        self,
        call: Call,
        deadline: float,
        reservation: Reservation,
        settle: Settle,
        price: Price,
        tokens: int,
    ) -> tuple[Reply | Refusal, float]:
        began = self.now()
        cost = reservation.amount  # what it counts as if this is broken off
        try:
            mode = self._modes.get(call.model, "json_schema")
            outcome = await self._client.send(call, mode, max(0.001, deadline - began))
            cost = _cost(outcome, price, reservation)
        finally:
            settle(reservation, cost)
        self._learn(call.model, outcome, tokens + call.max_tokens)
        self._count(outcome, cost)
        self._told(self.provider, call.model, call.job, outcome, self.now() - began, cost)
        return outcome, cost

    def _learn(self, model: str, outcome: Reply | Refusal, estimated: int) -> None:
        now = self.now()
        if isinstance(outcome, Reply):
            self.breaker = breakers.succeeded(self.breaker, now)
            self.pace.answered(estimated, outcome.input_tokens + outcome.output_tokens)
            return
        effect = outcome.effect
        if effect in (Effect.RATE, Effect.BURST):
            self.pace.refused(burst=effect is Effect.BURST, hold_seconds=outcome.retry_after)
            self._unadmit()  # it works: it only wants fewer calls
        elif effect is Effect.DOWN:
            self.breaker = breakers.failed(self.breaker, now)
            if breakers.state(self.breaker, now) == "open":
                self.pace.release()
                self._failing(self.provider, outcome, False)
        elif effect is Effect.FATAL:
            self._shut(model, outcome)
        else:
            self.breaker = breakers.succeeded(self.breaker, now)

    def _shut(self, model: str, outcome: Refusal) -> None:
        """Stop asking where only a person can mend it; a missing model shuts that model only."""
        seconds = min(outcome.retry_after or SHUT_SECONDS, 3600.0)
        self._shut_for[model] = (self.now() + seconds, outcome)
        self._unadmit()
        self.pace.release()
        self._failing(self.provider, outcome, True)
        LOG.warning(
            "provider_shut", provider=self.provider.name, model=model, code=str(outcome.code),
            provider_code=outcome.provider_code, seconds=seconds,
        )  # fmt: skip

    def reopen(self) -> None:
        """Ask again at once: its settings were changed."""
        self._shut_for.clear()
        self.breaker = Breaker()

    def _closed(self, model: str) -> Refusal | None:
        until, refusal = self._shut_for.get(model, (0.0, None))
        if refusal is not None and self.now() < until:
            return refusal
        if breakers.state(self.breaker, self.now()) == "open":
            return self._circuit()
        return None

    def _admit(self) -> Refusal | None:
        self.breaker, admitted = breakers.admit(self.breaker, self.now())
        return None if admitted else self._circuit()

    def _unadmit(self) -> None:
        """Give back the place of a probe that was not made, or that said nothing of the provider's health."""
        if self.breaker.probing:
            self.breaker = Breaker(until=self.breaker.until)

    def _circuit(self) -> Refusal:
        return Refusal(
            ErrorCode.CIRCUIT_OPEN,
            Effect.NONE,
            False,
            f"{self.provider.name} failed too often and is not asked for {breakers.OPEN_SECONDS:g} s",
        )

    def _plainer(self, model: str) -> bool:
        """Ask this model more plainly from now on; False where it is asked plainly already."""
        plainer = PLAINER[self._modes.get(model, "json_schema")]
        if plainer is None:
            return False
        self._modes[model] = plainer
        return True

    def _count(self, outcome: Reply | Refusal, cost: float) -> None:
        stats = self.stats
        stats.calls += 1
        stats.cost += cost
        if isinstance(outcome, Reply):
            stats.input_tokens += outcome.input_tokens
            stats.output_tokens += outcome.output_tokens
            return
        stats.errors += 1
        stats.rate_limited += outcome.effect in (Effect.RATE, Effect.BURST)
        code = outcome.code.value
        stats.by_code[code] = stats.by_code.get(code, 0) + 1

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _cost(outcome: Reply | Refusal, price: Price, reservation: Reservation) -> float:
    if isinstance(outcome, Reply):
        return cost_of(price, outcome.input_tokens, outcome.output_tokens, outcome.cached_tokens)
    return reservation.amount if outcome.code in NO_ANSWER and outcome.maybe_billed else 0.0


def _no_budget(purse: str, amount: float) -> Refusal:
    return Refusal(
        ErrorCode.BUDGET_EXCEEDED,
        Effect.NONE,
        False,
        f"the budget {purse} has not the {amount:.4g} left that a call may cost",
    )
