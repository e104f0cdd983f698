"""`POST /get_reward`: the contract of OpenRLHF's remote reward models, so that such a run can point here unchanged."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from services.reward.core.texts import Sample
from services.reward.core.verdict import Verdict
from shared.errors import TrainyardError
from shared.rewards.scores import MAX_ITEMS, RETRYABLE

_SPECIAL: Final = re.compile(r"(?:<\|[A-Za-z0-9_]+\|>|</s>|<s>|<eos>|<pad>|\s)+$")
Texts = Annotated[list[str], Field(max_length=MAX_ITEMS)]


class RemoteRequest(BaseModel):
    """`query` is prompt and completion decoded with special tokens; `labels` are the reference answers."""

    model_config = ConfigDict(extra="ignore")

    query: Annotated[Texts, Field(min_length=1)]
    prompts: Texts = []
    labels: Annotated[list[str | None], Field(max_length=MAX_ITEMS)] = []

    def samples(self) -> list[Sample]:
        """Return what is to be scored."""
        prompts = [*self.prompts, *[""] * len(self.query)]
        labels = [*self.labels, *[None] * len(self.query)]
        return [
            Sample(prompt, completion_of(query, prompt), label)
            for query, prompt, label in zip(self.query, prompts, labels, strict=False)
        ]


def completion_of(query: str, prompt: str) -> str:
    """Return what the model wrote: the query without the prompt before it and the special tokens behind it."""
    completion = query[len(prompt) :] if prompt and query.startswith(prompt) else query
    return _SPECIAL.sub("", completion)


def remote_answer(verdicts: list[Verdict]) -> dict[str, Any]:
    """Return `{rewards, scores, extra_logs}`.

    The contract has no null. Raises TrainyardError where an item has no verdict: OpenRLHF then tries again, and in the
    end leaves the sample without a reward, which is the truth; a zero would be a lie. 503 where trying again may help.
    """
    lost = next((v for v in verdicts if v.error is not None), None)
    if lost is not None and lost.error is not None:
        again = RETRYABLE[lost.error]
        raise TrainyardError(
            str(lost.error),
            503 if again else 422,
            "No verdict",
            "没有结果",
            f"An item has no verdict, and this contract cannot say so otherwise: {lost.message}.",
            f"有条目没有结果，而此接口无法用其他方式表达：{lost.message}。",
            headers={"Retry-After": "1"} if again else {},
        )
    rewards = [float(v.reward) for v in verdicts if v.reward is not None]
    scores = [min(1.0, max(0.0, r)) for r in rewards]
    return {"rewards": rewards, "scores": scores, "extra_logs": {}}
