"""Scores a batch by any reward: rules here, computer algebra in its processes, judges and models behind their ports."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from services.reward import selfplay
from services.reward.core.answers import Question, conclude, judge
from services.reward.core.combine import combine, gate_closed
from services.reward.core.formats import check_format
from services.reward.core.rules import score_rules
from services.reward.core.texts import Sample
from services.reward.core.verdict import Verdict, failed
from services.reward.ports import Context, Judges, RewardModels
from services.reward.symbolic.pool import SymbolicPool, Unverified
from shared.rewards.rule_specs import FormatCheck, MathVerify, RuleBased
from shared.rewards.scores import ErrorCode
from shared.rewards.specs import Child, Composite, Judge, Reward, RewardModel, SelfPlay, parts

Rule = Callable[[Sample], Verdict]
SLICE = 32
"""Items scored by rules between two looks at the other requests."""


class Engine:
    """`judges` is None in the mode beside a trainer: rules and local models only."""

    def __init__(
        self,
        symbolic: SymbolicPool,
        judges: Judges | None = None,
        models: RewardModels | None = None,
    ) -> None:
        self._symbolic = symbolic
        self._judges = judges
        self._models = models

    async def score(
        self, reward: Reward, samples: Sequence[Sample], context: Context
    ) -> list[Verdict]:
        """Return one verdict for each sample, in order. A failure is a verdict without a reward, never an exception."""
        if isinstance(reward, MathVerify):
            return await self._math(reward, samples, context)
        if isinstance(reward, FormatCheck):
            return await _rules(lambda sample: check_format(reward, sample), samples)
        if isinstance(reward, RuleBased):
            return await _rules(lambda sample: score_rules(reward, sample), samples)
        if isinstance(reward, SelfPlay):
            return await selfplay.score(self, reward, samples, context)
        if isinstance(reward, Composite):
            return await self._composite(reward, samples, context)
        if isinstance(reward, Judge):
            return await self.judged(reward, samples, context)
        return await self.modelled(reward, samples, context)

    def finished(self, context: Context) -> float | None:
        """Forget what belonged to one request; return what its budgets have left, None where there is none."""
        return None if self._judges is None else self._judges.finished(context)

    def currency(self, reward: Reward, context: Context) -> str | None:
        """Return in what a reward's costs are counted: that of its first judge."""
        judges = self._judges
        named = [part.provider for part in parts(reward) if isinstance(part, Judge)]
        return judges.currency(named[0], context) if judges is not None and named else None

    async def judged(
        self, spec: Judge, samples: Sequence[Sample], context: Context
    ) -> list[Verdict]:
        """Score by a judge, all items at once; its own limits order them."""
        judges = self._judges
        if judges is None:
            return [_rules_only("judge") for _ in samples]
        found = [judges.peek(spec, sample, context) for sample in samples]
        asked = [s for s, verdict in zip(samples, found, strict=True) if verdict is None]
        rest = iter(
            await asyncio.gather(*(_until(context, judges.judge(spec, s, context)) for s in asked))
        )
        return [next(rest) if verdict is None else verdict for verdict in found]

    async def duel(
        self, spec: Judge, prompt: str, first: str, second: str, context: Context
    ) -> Verdict:
        """Let a judge compare two completions."""
        if self._judges is None:
            return _rules_only("judge")
        return await _until(context, self._judges.duel(spec, prompt, first, second, context))

    async def modelled(
        self, spec: RewardModel, samples: Sequence[Sample], context: Context
    ) -> list[Verdict]:
        """Score by a reward model."""
        if self._models is None:
            return [_rules_only("reward model") for _ in samples]
        try:
            async with asyncio.timeout_at(context.deadline):
                return await self._models.scores(spec, samples, context)
        except TimeoutError:
            return [_late() for _ in samples]

    async def same(self, spec: MathVerify, gold: str, answer: str, context: Context) -> Verdict:
        """Decide one question for computer algebra."""
        try:
            async with asyncio.timeout_at(context.deadline):
                outcome = await self._symbolic.ask(Question(gold, answer), context.item_seconds)
        except TimeoutError:
            return _late()
        except Unverified as problem:
            if problem.timeout:
                return failed(
                    ErrorCode.VERIFIER_TIMEOUT, f"not verified within {context.item_seconds:g} s"
                )
            return failed(ErrorCode.VERIFIER_CRASHED, "the verifier's process died twice")
        except BufferError:
            return failed(ErrorCode.VERIFIER_TIMEOUT, "the verifier's queue is full")
        return conclude(spec, outcome, answer)

    async def _math(
        self, spec: MathVerify, samples: Sequence[Sample], context: Context
    ) -> list[Verdict]:
        found: list[Verdict | Question] = []
        for place, sample in enumerate(samples):
            found.append(judge(spec, sample.completion, sample.solution))
            if place % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        # equal questions are asked once
        questions = list(dict.fromkeys(q for q in found if isinstance(q, Question)))
        answers = await asyncio.gather(
            *(self.same(spec, q.gold, q.answer, context) for q in questions)
        )
        decided = dict(zip(questions, answers, strict=True))
        return [decided[f] if isinstance(f, Question) else f for f in found]

    async def _composite(
        self, spec: Composite, samples: Sequence[Sample], context: Context
    ) -> list[Verdict]:
        """Score by every child; in `gated` and `first_ok` one after another, and only the items that still need it."""
        by_item: list[dict[str, Verdict]] = [{} for _ in samples]
        if spec.combine in ("gated", "first_ok"):
            await self._in_turn(spec, samples, context, by_item)
        else:
            await asyncio.gather(
                *(self._child(c, samples, range(len(samples)), context, by_item) for c in spec.children)
            )  # fmt: skip
        return [combine(spec, verdicts) for verdicts in by_item]

    async def _in_turn(
        self,
        spec: Composite,
        samples: Sequence[Sample],
        context: Context,
        by_item: list[dict[str, Verdict]],
    ) -> None:
        open_items = list(range(len(samples)))
        for child in spec.children:
            if not open_items:
                return
            await self._child(child, samples, open_items, context, by_item)
            if spec.combine == "gated":
                open_items = [
                    n for n in open_items if not gate_closed(spec, child, by_item[n][child.name])
                ]
            else:
                open_items = [n for n in open_items if by_item[n][child.name].error is not None]

    async def _child(
        self,
        child: Child,
        samples: Sequence[Sample],
        items: Sequence[int],
        context: Context,
        by_item: list[dict[str, Verdict]],
    ) -> None:
        verdicts = await self.score(child.reward, [samples[n] for n in items], context)
        for n, verdict in zip(items, verdicts, strict=True):
            by_item[n][child.name] = verdict


async def _rules(rule: Rule, samples: Sequence[Sample]) -> list[Verdict]:
    verdicts = []
    for place, sample in enumerate(samples):
        verdicts.append(rule(sample))
        if place % SLICE == SLICE - 1:
            await asyncio.sleep(0)
    return verdicts


async def _until(context: Context, work: Awaitable[Verdict]) -> Verdict:
    """Await a verdict until the batch's deadline: what is late has none, and the others are not lost with it."""
    try:
        async with asyncio.timeout_at(context.deadline):
            return await work
    except TimeoutError:
        return _late()


def _late() -> Verdict:
    return failed(ErrorCode.DEADLINE_EXCEEDED, "the request's timeout_s was over first")


def _rules_only(what: str) -> Verdict:
    return failed(
        ErrorCode.PROVIDER_UNKNOWN,
        f"this service runs beside a trainer and scores by rules and local models only; send a {what} to the central reward service",
    )
