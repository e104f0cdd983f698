"""Several rewards in one. A part without a verdict never counts as zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from services.reward.core.verdict import Verdict, failed
from shared.rewards.scores import ErrorCode
from shared.rewards.specs import Child, Composite


def combine(spec: Composite, verdicts: Mapping[str, Verdict]) -> Verdict:
    """Return the composite's verdict from those of its children, by name.

    A child that is not there was not asked (behind a closed gate, or behind the one that answered in `first_ok`).
    """
    components = _components(spec, verdicts)
    if spec.combine == "first_ok":
        return _with(_first(spec, verdicts), components, verdicts)
    missing = [c for c in spec.children if c.name in verdicts and verdicts[c.name].error]
    for child in missing:
        if spec.on_child_error == "error" or child.required:
            return _with(_lacking(child, verdicts[child.name]), components, verdicts)
    there = [c for c in spec.children if c.name in verdicts and c not in missing]
    if not there:
        return _with(_lacking(missing[0], verdicts[missing[0].name]), components, verdicts)
    reward = _value(spec, there, verdicts)
    if reward is None or not math.isfinite(reward):
        problem = failed(
            ErrorCode.COMPONENT_FAILED, "the parts that have a verdict weigh 0 together"
        )
        return _with(problem, components, verdicts)
    total = Verdict(reward, _reason(spec, verdicts), partial=bool(missing))
    return _with(total, components, verdicts)


def gate_closed(spec: Composite, child: Child, verdict: Verdict) -> bool:
    """Tell whether the children behind `child` are left out: it scored its threshold or below, or has no verdict."""
    return spec.combine == "gated" and (verdict.reward is None or verdict.reward <= child.threshold)


def _value(
    spec: Composite, there: Sequence[Child], verdicts: Mapping[str, Verdict]
) -> float | None:
    values = [(c.weight, _reward(verdicts[c.name])) for c in there]
    if spec.combine == "product":
        return math.prod(v for _, v in values)
    if spec.combine == "min":
        return min(v for _, v in values)
    total = sum(w * v for w, v in values)
    asked = sum(abs(c.weight) for c in spec.children if c.name in verdicts)
    weight = sum(abs(w) for w, _ in values)
    if weight == 0:
        return None if asked else total
    if spec.combine == "weighted_mean":
        return total / weight
    # a dropped part must not make the sum smaller: what is there stands for all that was asked
    return total * asked / weight


def _reward(verdict: Verdict) -> float:
    if verdict.reward is None:
        raise ValueError("only children with a verdict are combined")
    return verdict.reward


def _first(spec: Composite, verdicts: Mapping[str, Verdict]) -> Verdict:
    last = None
    for place, child in enumerate(spec.children):
        verdict = verdicts.get(child.name)
        if verdict is None:
            continue
        if verdict.reward is not None:
            return Verdict(verdict.reward, verdict.reason, verdict.extracted, fallback=place > 0)
        last = verdict
    return last or failed(ErrorCode.COMPONENT_FAILED, "no part was asked")


def _lacking(child: Child, verdict: Verdict) -> Verdict:
    if verdict.error is None:
        raise ValueError("the child has a verdict")
    return failed(
        verdict.error, f"{child.name}: {verdict.message}", provider_code=verdict.provider_code
    )


def _reason(spec: Composite, verdicts: Mapping[str, Verdict]) -> str:
    if spec.combine == "gated":
        for child in spec.children:
            if child.name in verdicts and gate_closed(spec, child, verdicts[child.name]):
                return f"gate_{child.name}"
    return spec.combine


def _components(spec: Composite, verdicts: Mapping[str, Verdict]) -> dict[str, float | None]:
    """Return each child's own reward, unweighted, and below `name.` the parts of a child that has some."""
    parts: dict[str, float | None] = {}
    for child in spec.children:
        verdict = verdicts.get(child.name)
        if verdict is not None:
            parts[child.name] = verdict.reward
            parts |= {f"{child.name}.{k}": v for k, v in verdict.components.items()}
    return parts


def _with(
    total: Verdict, components: Mapping[str, float | None], verdicts: Mapping[str, Verdict]
) -> Verdict:
    """Add what all parts together cost and used."""
    parts = list(verdicts.values())
    return Verdict(
        total.reward,
        total.reason,
        total.extracted,
        total.error,
        total.message,
        total.provider_code,
        components,
        partial=total.partial or any(v.partial for v in parts),
        fallback=total.fallback or any(v.fallback for v in parts),
        cached=bool(parts) and all(v.cached for v in parts if v.provider) and any(v.provider for v in parts),
        deduplicated=any(v.deduplicated for v in parts),
        attempts=max((v.attempts for v in parts), default=1),
        provider=next((v.provider for v in parts if v.provider), None),
        input_tokens=sum(v.input_tokens for v in parts),
        output_tokens=sum(v.output_tokens for v in parts),
        cost=sum(v.cost for v in parts),
    )  # fmt: skip
