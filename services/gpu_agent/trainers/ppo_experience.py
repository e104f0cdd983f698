"""What one rollout teaches: rewards turned into advantages, rows dealt to minibatches, and what a piece of one adds to the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from services.gpu_agent.trainers import ppo_losses
from services.gpu_agent.trainers.ppo_losses import (
    generalized_advantages,
    kl_k1,
    moments,
    token_rewards,
    whiten,
)
from services.gpu_agent.trainers.ppo_rollout import Completions
from services.gpu_agent.trainers.settings import PpoSettings

GAMMA = 1.0
"""Rewards of a completion are not discounted: it is short, and its score stands at its end."""

TERMS: Final = ("policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac")


@dataclass(frozen=True, slots=True)
class Experience:
    """N completions as the policy that wrote them saw them; all `[N, T]`, float32 but for `mask`."""

    completions: Completions
    mask: Tensor
    """bool: tokens to learn from; none in rows without a verdict."""
    logp: Tensor
    values: Tensor
    advantages: Tensor
    """Whitened over `mask`, of all processes together."""
    returns: Tensor

    @property
    def judged(self) -> Tensor:
        """bool `[N]`: rows with a verdict."""
        return self.mask.any(-1)

    def row_advantages(self) -> list[float]:
        """Return the mean advantage of each row's tokens, 0 for rows without a verdict."""
        counts = self.mask.sum(-1).clamp(min=1)
        return [float(a) for a in (self.advantages.sum(-1) / counts).tolist()]


def experience(
    completions: Completions,
    logp: Tensor,
    reference_logp: Tensor | None,
    values: Tensor,
    rewards: Sequence[float | None],
    chosen: PpoSettings,
    total: Callable[[Tensor], Tensor] = lambda t: t,
) -> Experience:
    """Return what there is to learn. `logp`, `reference_logp`, `values`: float32 `[N, T]`; `rewards`: one a completion.

    A reward of None masks its whole row. `total` adds a tensor up over all processes.
    """
    judged = torch.tensor([r is not None for r in rewards], device=logp.device)
    scores = torch.tensor([r or 0.0 for r in rewards], dtype=logp.dtype, device=logp.device)
    kl = torch.zeros_like(logp) if reference_logp is None else kl_k1(logp, reference_logp)
    written = completions.mask
    per_token = token_rewards(scores, kl, written, chosen.kl_coef)
    advantages, returns = generalized_advantages(
        per_token, values, written, gamma=GAMMA, lam=chosen.gae_lambda
    )
    mask = written & judged.unsqueeze(-1)
    white = whiten(advantages, mask, total(moments(advantages, mask)))
    return Experience(completions, mask, logp, values, white, returns)


def minibatches(judged: Tensor, count: int) -> list[Tensor]:
    """Deal the rows of `judged` (bool `[N]`) in random order to at most `count` index tensors, as evenly as can be.

    Rows without a verdict are dealt apart from the others, so that no minibatch is short of rows to learn from while
    another has plenty; the last one has some if any has. Draws from torch's own CPU generator, which checkpoints keep.
    """
    order = torch.randperm(len(judged))
    there = judged.cpu()[order]
    some, none = order[there], order[~there]
    count = min(count, len(order))
    dealt = zip(reversed(some.tensor_split(count)), none.tensor_split(count), strict=True)
    return [torch.cat(pair) for pair in dealt]


def terms(
    seen: tuple[Tensor, Tensor, Tensor], lessons: Experience, rows: Tensor, chosen: PpoSettings
) -> Tensor:
    """Return the sums over the tokens of `rows`: the whole loss, then TERMS; float32 `[6]`.

    `seen`: what the policy as it is now makes of these rows (log-probabilities, entropies, values), each `[rows, T]`.
    """
    logp, entropy, values = seen
    rows = rows.to(logp.device)
    mask, old_logp = lessons.mask[rows], lessons.logp[rows]
    policy, clipped = ppo_losses.policy_loss(
        logp, old_logp, lessons.advantages[rows], chosen.clip_ratio
    )
    value = ppo_losses.value_loss(
        values, lessons.values[rows], lessons.returns[rows], ppo_losses.VALUE_CLIP
    )
    whole = ppo_losses.total_loss(
        policy, value, entropy, vf_coef=chosen.vf_coef, entropy_coef=chosen.entropy_coef
    )
    moved = ppo_losses.kl_k3(old_logp, logp)
    parts = (whole, policy, value, entropy, moved, clipped.float())
    return torch.stack([ppo_losses.masked_sum(part, mask) for part in parts])
