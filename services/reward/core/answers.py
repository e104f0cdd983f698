"""math_verify: from a completion and a reference answer to a verdict, or to the question for computer algebra."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from services.reward.core import compare
from services.reward.core.boxes import last_boxed
from services.reward.core.compare import Outcome, Tolerance
from services.reward.core.final import final_part
from services.reward.core.json_answer import json_answer
from services.reward.core.last_number import last_number
from services.reward.core.verdict import Verdict, failed, scored
from shared.rewards.rule_specs import Compare, Extract, MathVerify
from shared.rewards.scores import ErrorCode

LONGEST_ANSWER: Final = 20_000
"""Characters; a longer answer is none."""


@dataclass(frozen=True, slots=True)
class Question:
    """Whether two formulas mean the same, for computer algebra."""

    gold: str
    answer: str


def extract(completion: str, how: Extract, json_key: str) -> str | None:
    """Return the answer in a completion, or None where there is none (reference 4, R1-R3 and 4.1)."""
    part = final_part(completion)
    if part is None:
        return None
    if how == "boxed":
        return last_boxed(part)
    return last_number(part) if how == "last_number" else json_answer(part, json_key)


def gold_of(solution: str | None) -> str | None:
    """Return the reference answer: what follows the last `####`, else the last box, else all; None where empty (R4)."""
    if solution is None:
        return None
    _, marked, rest = solution.rpartition("####")
    if marked:
        return rest.strip() or None
    return last_boxed(solution) or solution.strip() or None


_COMPARE: Final[Mapping[Compare, Callable[[str, str, Tolerance], Outcome]]] = {
    "exact": lambda gold, answer, _: compare.exact(gold, answer),
    "numeric": compare.numeric,
    "fuzzy": compare.fuzzy,
}


def judge(spec: MathVerify, completion: str, solution: str | None) -> Verdict | Question:
    """Score one completion; a Question where only computer algebra can tell."""
    gold = gold_of(solution)
    if gold is None:
        return failed(ErrorCode.GOLD_MISSING, "the item has no reference answer")
    answer = extract(completion, spec.extract, spec.json_key)
    if answer is None:
        return scored(spec.no_answer_reward, "no_answer")
    if len(answer) > LONGEST_ANSWER:
        return scored(spec.wrong_reward, Outcome.TOO_COMPLEX.value, answer[:200])
    outcome = _COMPARE[spec.compare](gold, answer, Tolerance(spec.rtol, spec.atol))
    if outcome is Outcome.SYMBOLIC:
        return Question(gold, answer)
    return conclude(spec, outcome, answer)


def conclude(spec: MathVerify, outcome: Outcome, answer: str) -> Verdict:
    """Return the verdict that belongs to a decided outcome."""
    shown = answer[:200]
    if outcome is Outcome.EQUAL:
        return scored(spec.correct_reward, f"equal_{spec.compare}", shown)
    if outcome is Outcome.GOLD_UNPARSEABLE:
        return failed(
            ErrorCode.GOLD_UNPARSEABLE,
            f"the reference answer cannot be read by compare {spec.compare}",
        )
    reason = outcome.value if outcome is Outcome.TOO_COMPLEX else f"different_{spec.compare}"
    return scored(spec.wrong_reward, reason, shown)
