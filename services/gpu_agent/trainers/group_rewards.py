"""The one reward function of GRPO and GSPO: asks for a whole step's completions, all ranks together, groups undivided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from accelerate.utils import gather_object

from services.gpu_agent.trainers import ranks
from services.gpu_agent.trainers.rewarding import Scorer
from services.gpu_agent.trainers.rollouts import Rollout, RolloutPrompt, Verdict

NAME: Final = "reward"
PolicyScores = Callable[[Sequence[RolloutPrompt], Sequence[Sequence[int]]], list[float]]


@dataclass(frozen=True, slots=True)
class Scored:
    """One step's completions with their verdicts: those of all ranks, and which of them are this rank's."""

    rollouts: list[Rollout]
    verdicts: list[Verdict]
    own: slice
    seconds: float

    @property
    def blank(self) -> bool:
        """Whether nobody knows what any completion is worth."""
        return all(v.reward is None for v in self.verdicts)


class GroupRewards:
    """Callable as TRL calls a reward function; a component that failed is never zero, since there is only this one."""

    __name__ = NAME

    def __init__(self, scorer: Scorer, prompts: Sequence[RolloutPrompt], group: int) -> None:
        """`group`: completions of one prompt."""
        self._scorer = scorer
        self._prompts = prompts
        self._group = group
        self.ends: frozenset[int] = frozenset()
        """Tokens that end a completion, padding among them."""
        self.policy_scores: PolicyScores | None = None
        """Length-normalised log-probabilities, for duels that the policy decides itself."""
        self.last: Scored | None = None

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        index: Sequence[int],
        **_: Any,
    ) -> list[float | None]:
        """Return this rank's rewards, None where there is no verdict; all of them are in `last`."""
        asked = [self._prompts[i] for i in index]
        scores: Sequence[float | None] = [None] * len(asked)
        if self._scorer.plan.needs_scores and self.policy_scores is not None:
            scores = self.policy_scores(asked, completion_ids)
        own = [
            (i, text, ids[-1] not in self.ends, score, len(ids))
            for i, text, ids, score in zip(index, completions, completion_ids, scores, strict=True)
        ]
        rollouts = [
            Rollout(self._prompts[i], text, cut, str(n // self._group), score, tokens)
            for n, (i, text, cut, score, tokens) in enumerate(gather_object(own))
        ]
        rank = ranks.number()
        verdicts, seconds = ranks.first_does(
            lambda: (self._scorer.score(rollouts), self._scorer.seconds)
        )
        mine = slice(rank * len(own), (rank + 1) * len(own))
        self.last = Scored(rollouts, verdicts, mine, seconds)
        return [v.reward for v in verdicts[mine]]
