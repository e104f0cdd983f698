"""What the engine asks of judges and reward models; rules need neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from services.reward.core.texts import Sample
from services.reward.core.verdict import Verdict
from shared.rewards.specs import Judge, RewardModel


@dataclass(frozen=True, slots=True)
class Context:
    """What holds for a whole batch. Times in seconds; `deadline` on the event loop's clock."""

    request_id: str
    deadline: float
    item_seconds: float = 5.0
    """The most work for one item; counted from when its work begins."""
    job_uuid: str | None = None
    cache: Literal["use", "refresh", "bypass"] = "use"
    priority: Literal["train", "eval"] = "train"
    max_cost: float | None = None
    """The most that this request may cost."""
    job_max_cost: float | None = None
    """The most that all requests of the job may cost."""


class Judges(Protocol):
    """Models behind an API. Neither method raises for a failure: it is a verdict without a reward."""

    def peek(self, spec: Judge, sample: Sample, context: Context) -> Verdict | None:
        """Return a verdict that is at hand, or None."""
        ...

    async def judge(self, spec: Judge, sample: Sample, context: Context) -> Verdict:
        """Return the score of one completion, mapped to 0..1."""
        ...

    async def duel(
        self, spec: Judge, prompt: str, first: str, second: str, context: Context
    ) -> Verdict:
        """Return what the first completion gets against the second: 1, 0.5 or 0, judged in both orders."""
        ...

    def finished(self, context: Context) -> float | None:
        """Forget what belonged to one request; return what its budgets have left, None where there is none."""
        ...

    def currency(self, provider: str, context: Context) -> str | None:
        """Return in what a provider's costs are counted."""
        ...


class RewardModels(Protocol):
    """Sequence-classification models. Never raises for a failure."""

    async def scores(
        self, spec: RewardModel, samples: Sequence[Sample], context: Context
    ) -> list[Verdict]:
        """Return one verdict for each sample, in order."""
        ...
