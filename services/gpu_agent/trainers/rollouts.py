"""What PPO, GRPO and GSPO pass around: prompts, completions, verdicts; and how context_length is shared out. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RolloutPrompt:
    """One dataset row as the model gets it: `text` is rendered, `ids` are its tokens, `shown` is what people read."""

    index: int
    """Place among the kept rows; it names the group of its completions."""
    text: str
    ids: tuple[int, ...]
    shown: str
    solution: str | None = None
    """The reference answer, of the column that `reward_fn_answer_key` names."""
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion that is to be scored."""

    prompt: RolloutPrompt
    completion: str
    truncated: bool = False
    """It did not end by itself."""
    group: str = ""
    """Completions of one prompt in one step share it."""
    score: float | None = None
    """For duels decided by the policy itself: its length-normalised log-probability of this completion."""
    tokens: int = 0
    """Length of the completion, its end token included."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a completion is worth; `reward` is finite, or None where nobody could say."""

    reward: float | None
    components: Mapping[str, float | None] = field(default_factory=dict)
    error: str | None = None
    """The code of the reward service, where there is no verdict."""


@dataclass(frozen=True, slots=True)
class LengthPlan:
    """How one context is shared: prompts of at most `prompt` tokens are kept, completions end after `completion`."""

    prompt: int
    completion: int


def share_context(
    lengths: Sequence[int], context_length: int, max_completion_length: int
) -> LengthPlan:
    """Divide `context_length` (tokens) between prompt and completion.

    A prompt may take what a completion of `max_completion_length` leaves, and at least half of the context; completions
    get what the longest kept prompt leaves, at most `max_completion_length`.
    """
    reserved = min(max_completion_length, max(1, context_length // 2))
    prompt = context_length - reserved
    longest = max((n for n in lengths if n <= prompt), default=prompt)
    return LengthPlan(prompt, min(max_completion_length, context_length - longest))
