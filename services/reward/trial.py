"""Tries a judge before a run: whether it answers, and whether it rewards what no judge may reward."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from starlette.requests import Request

from services.reward.core.judging import CANARIES
from services.reward.core.texts import Sample
from services.reward.routes import parse
from services.reward.scoring import Scoring
from shared.rewards.base import Contract
from shared.rewards.scores import Options
from shared.rewards.specs import Judge

CANARY_LIMIT = 0.5
TASK = "What is 17 + 25? Give the number."
RIGHT = "17 + 25 = 42, so the answer is 42."


class Trial(Contract):
    """What is tried."""

    model: str = "qwen-plus"
    rubric: str = ""


TRIAL: TypeAdapter[Trial] = TypeAdapter(Trial)


async def try_provider(scoring: Scoring, name: str, request: Request) -> dict[str, Any]:
    """Return what a right answer got, and each canary; `ok` where the judge answers and no canary gets 0.5 or more."""
    body = await request.body()
    trial = parse(TRIAL, body) if body.strip() else Trial()
    spec = Judge(type="judge", provider=name, model=trial.model, rubric=trial.rubric, cache=False)
    context = scoring.context(Options(timeout_s=60.0))
    samples = [Sample(TASK, text) for text in (RIGHT, *CANARIES)]
    verdicts = await scoring.verdicts(spec, samples, context)
    shown = [
        {
            "completion": sample.completion,
            "reward": verdict.reward,
            "error": None if verdict.error is None else str(verdict.error),
            "message": verdict.message,
            "cost": verdict.cost,
        }
        for sample, verdict in zip(samples, verdicts, strict=True)
    ]
    failed = [
        s for s in shown[1:] if s["reward"] is not None and float(str(s["reward"])) >= CANARY_LIMIT
    ]
    return {
        "ok": verdicts[0].error is None and not failed,
        "answer": shown[0],
        "canaries": shown[1:],
        "canaries_failed": len(failed),
    }
