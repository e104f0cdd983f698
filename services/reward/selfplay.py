"""self_play: groups of completions of one prompt, rewarded against each other."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from services.reward.core import compare, votes
from services.reward.core.answers import extract
from services.reward.core.compare import Outcome, Tolerance
from services.reward.core.texts import Sample
from services.reward.core.verdict import Verdict, failed, scored
from services.reward.ports import Context
from shared.rewards.rule_specs import MathVerify
from shared.rewards.scores import ErrorCode
from shared.rewards.specs import SelfPlay

if TYPE_CHECKING:
    from services.reward.engine import Engine


async def score(
    engine: Engine, spec: SelfPlay, samples: Sequence[Sample], context: Context
) -> list[Verdict]:
    """Return one verdict for each sample; samples with the same `group` are one group of 2 to 16."""
    groups: dict[str | None, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        groups[sample.group].append(place)
    verdicts: list[Verdict | None] = [None] * len(samples)

    async def one(group: str | None, places: list[int]) -> None:
        members = [samples[p] for p in places]
        for place, verdict in zip(
            places, await _group(engine, spec, group, members, context), strict=True
        ):
            verdicts[place] = verdict

    await asyncio.gather(*(one(group, places) for group, places in groups.items()))
    return [v for v in verdicts if v is not None]


async def _group(
    engine: Engine,
    spec: SelfPlay,
    group: str | None,
    members: Sequence[Sample],
    context: Context,
) -> list[Verdict]:
    if group is None or not votes.MIN_GROUP <= len(members) <= votes.MAX_GROUP:
        problem = (
            "self_play needs group_id"
            if group is None
            else f"a group has {votes.MIN_GROUP} to {votes.MAX_GROUP} completions, this one has {len(members)}"
        )
        return [failed(ErrorCode.INVALID_ITEM, problem) for _ in members]
    if spec.mode == "majority":
        return await _majority(engine, spec, members, context)
    return await _duels(engine, spec, members, context)


async def _majority(
    engine: Engine, spec: SelfPlay, members: Sequence[Sample], context: Context
) -> list[Verdict]:
    answers = [extract(m.completion, spec.extract, spec.json_key) for m in members]
    clusters = await _clusters(engine, spec, answers, context)
    if isinstance(clusters, Verdict):
        return [clusters for _ in members]
    result = votes.majority(clusters)
    verdicts = []
    for answer, reward in zip(answers, result.rewards, strict=True):
        reason = "no_answer" if answer is None else "majority" if reward else "minority"
        verdict = scored(reward, reason, None if answer is None else answer[:200])
        verdicts.append(replace(verdict, components={"majority_share": result.share}))
    return verdicts


async def _clusters(
    engine: Engine, spec: SelfPlay, answers: Sequence[str | None], context: Context
) -> list[int | None] | Verdict:
    """Return the cluster of each answer: equal to the first of a cluster means in it. A Verdict where one cannot be told."""
    firsts: list[str] = []
    known: dict[str, int] = {}
    clusters: list[int | None] = []
    for answer in answers:
        if answer is None:
            clusters.append(None)
            continue
        if answer not in known:
            place = await _place(engine, spec, answer, firsts, context)
            if isinstance(place, Verdict):
                return place
            if place == len(firsts):
                firsts.append(answer)
            known[answer] = place
        clusters.append(known[answer])
    return clusters


async def _place(
    engine: Engine, spec: SelfPlay, answer: str, firsts: Sequence[str], context: Context
) -> int | Verdict:
    for place, first in enumerate(firsts):
        outcome = _compare(spec, first, answer)
        if outcome is Outcome.EQUAL:
            return place
        if outcome is Outcome.SYMBOLIC:
            rule = MathVerify(type="math_verify", compare="fuzzy")
            verdict = await engine.same(rule, first, answer, context)
            if verdict.error in (ErrorCode.VERIFIER_TIMEOUT, ErrorCode.VERIFIER_CRASHED):
                return verdict
            if verdict.reward == 1.0:
                return place
    return len(firsts)


def _compare(spec: SelfPlay, first: str, answer: str) -> Outcome:
    if first == answer:
        return Outcome.EQUAL
    if spec.compare == "exact":
        return compare.exact(first, answer)
    if spec.compare == "fuzzy":
        return compare.fuzzy(first, answer, Tolerance())
    # answers that are no numbers agree where their texts do
    outcome = compare.numeric(first, answer, Tolerance())
    return compare.exact(first, answer) if outcome is Outcome.GOLD_UNPARSEABLE else outcome


async def _duels(
    engine: Engine, spec: SelfPlay, members: Sequence[Sample], context: Context
) -> list[Verdict]:
    duels = votes.pairs([m.completion for m in members], spec.opponents)
    if spec.by == "judge" and spec.judge is not None:
        judge = spec.judge
        decided = await asyncio.gather(
            *(
                engine.duel(
                    judge, members[i].prompt, members[i].completion, members[j].completion, context
                )
                for i, j in duels
            )
        )
        results = [(i, j, v.reward) for (i, j), v in zip(duels, decided, strict=True)]
        return _with_results(members, results, decided)
    scores = await _scores(engine, spec, members, context)
    values = [v.reward for v in scores]
    return _with_results(members, [(i, j, _winner(values[i], values[j])) for i, j in duels], scores)


async def _scores(
    engine: Engine, spec: SelfPlay, members: Sequence[Sample], context: Context
) -> list[Verdict]:
    if spec.by == "reward_model" and spec.reward_model is not None:
        return await engine.modelled(spec.reward_model, members, context)
    verdicts = []
    for member in members:
        value = member.metadata.get("score")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            verdicts.append(scored(float(value), "score"))
        else:
            verdicts.append(
                failed(ErrorCode.INVALID_ITEM, "duels by scores need a number in metadata.score")
            )
    return verdicts


def _winner(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return None
    return 0.5 if first == second else float(first > second)


def _with_results(
    members: Sequence[Sample],
    results: Sequence[tuple[int, int, float | None]],
    parts: Sequence[Verdict],
) -> list[Verdict]:
    """Return win rates; the cost of all duels is shared evenly, and a member without a decided duel has no verdict."""
    rates = votes.win_rates(len(members), results)
    problem = next((v for v in parts if v.error is not None), None)
    cost = sum(v.cost for v in parts) / len(members)
    tokens = sum(v.input_tokens for v in parts), sum(v.output_tokens for v in parts)
    verdicts = []
    for place, rate in enumerate(rates):
        if rate is None:
            error = problem.error if problem and problem.error else ErrorCode.COMPONENT_FAILED
            verdict = failed(error, problem.message if problem else "no duel was decided")
        else:
            verdict = scored(rate, "win_rate")
        first = place == 0
        verdicts.append(
            replace(
                verdict,
                components={"win_rate": rate},
                cost=cost,
                provider=next((v.provider for v in parts if v.provider), None),
                cached=all(v.cached for v in parts) and bool(parts),
                input_tokens=tokens[0] if first else 0,
                output_tokens=tokens[1] if first else 0,
            )
        )
    return verdicts
