"""format_check: whether a completion has the form that was asked for."""

from __future__ import annotations

from collections.abc import Mapping

from services.reward.core.boxes import last_boxed
from services.reward.core.final import final_part
from services.reward.core.patterns import found
from services.reward.core.schemas import fits_schema
from services.reward.core.texts import Sample
from services.reward.core.verdict import Verdict, failed, scored
from shared.rewards.rule_specs import FormatCheck
from shared.rewards.scores import ErrorCode

Checks = Mapping[str, bool]


def check_format(spec: FormatCheck, sample: Sample) -> Verdict:
    """Score the form: `strict` 1 where every check holds, `graded` the share of them; a cut completion scores 0."""
    if sample.truncated:
        return scored(0.0, "truncated")
    checks = _checks(spec, sample.completion)
    if isinstance(checks, Verdict):
        return checks
    share = sum(checks.values()) / len(checks)
    missing = [name for name, holds in checks.items() if not holds]
    reward = share if spec.mode == "graded" else float(not missing)
    return scored(reward, "format_ok" if not missing else "not_" + missing[0])


def _checks(spec: FormatCheck, text: str) -> Checks | Verdict:
    if spec.preset == "think_answer":
        return think_answer(text)
    if spec.preset == "boxed":
        part = final_part(text)
        return {"boxed": part is not None and last_boxed(part) is not None}
    if spec.preset == "tags":
        return _tags(text, spec.tags or ())
    if spec.preset == "json_schema":
        return {"json_schema": fits_schema(final_part(text) or "", spec.json_schema or {})}
    holds = found(spec.pattern or "", text)
    if holds is None:
        return failed(ErrorCode.VERIFIER_TIMEOUT, "the pattern took longer than its 50 ms")
    return {"pattern": holds}


def think_answer(text: str) -> Checks:
    """Check for exactly one `<think>…</think>` and then exactly one `<answer>…</answer>`, and nothing around them.

    One pass over the whole text; a greedy pattern would let repeated tags through.
    """
    marks = ("<think>", "</think>", "<answer>", "</answer>")
    places = [text.find(mark) for mark in marks]
    once = [text.count(mark) == 1 for mark in marks]
    ordered = all(once) and places == sorted(places)
    if not ordered:
        return {
            "one_think": once[0] and once[1],
            "one_answer": once[2] and once[3],
            "in_order": False,
            "not_empty": False,
            "nothing_around": False,
        }
    ends = [place + len(mark) for place, mark in zip(places, marks, strict=True)]
    around = text[: places[0]] + text[ends[1] : places[2]] + text[ends[3] :]
    inside = text[ends[0] : places[1]].strip() and text[ends[2] : places[3]].strip()
    return {
        "one_think": True,
        "one_answer": True,
        "in_order": True,
        "not_empty": bool(inside),
        "nothing_around": not around.strip(),
    }


def _tags(text: str, tags: tuple[str, ...]) -> Checks:
    checks, after = {}, 0
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        start, end = text.find(opening), text.find(closing)
        once = text.count(opening) == 1 and text.count(closing) == 1
        holds = once and after <= start < end and bool(text[start + len(opening) : end].strip())
        checks[tag] = holds
        after = end + len(closing) if holds else after
    return checks
