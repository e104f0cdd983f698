"""The equations of PPO on padded tensors of completion tokens. Pure.

Shapes: B completions of up to T tokens each, `[B, T]`; V is the vocabulary. `mask` is bool `[B, T]`, true at the tokens
that the policy chose (its end token too), always from the first token on and without a gap. What stands at other places
of a tensor never matters. Losses are given per token, so that whoever cuts a minibatch into pieces divides by the
tokens of the whole.

Sources: PPO: Schulman et al. 2017, arXiv:1707.06347. GAE: Schulman et al. 2016, arXiv:1506.02438. Language models as
policies, with the KL penalty in the reward: Stiennon et al. 2020, arXiv:2009.01325, and Ziegler et al. 2019,
arXiv:1909.08593 section 2. Estimators of KL: J. Schulman, "Approximating KL divergence", 2020. Clipped values: OpenAI
baselines, ppo2/model.py; Huang et al. 2022, "The 37 implementation details of PPO", detail 9.
"""

from __future__ import annotations

import torch
from torch import Tensor

VALUE_CLIP = 0.2
"""How far a value may move in one rollout before its gradient stops: the `cliprange` of ppo2, as in TRL's last PPO."""


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return (log p(token), entropy), both float32 `[B, T]`, of the distribution softmax(logits / temperature).

    `logits` `[B, T, V]` of any float type; `tokens` `[B, T]` the chosen ones. Entropy: H = -sum_v p_v log p_v.
    """
    logp = torch.log_softmax(logits.float() / temperature, dim=-1)
    chosen = logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen, -(logp.exp() * logp).sum(-1)


def kl_k1(logp: Tensor, other: Tensor) -> Tensor:
    """Return k1 = log p(x) - log q(x) for x drawn from p: unbiased for KL(p, q), of either sign."""
    return logp - other


def kl_k3(logp: Tensor, other: Tensor) -> Tensor:
    """Return k3 = r - 1 - log r with r = q(x) / p(x) for x drawn from p: unbiased for KL(p, q), never negative."""
    log_ratio = other - logp
    return torch.expm1(log_ratio) - log_ratio


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return `[B, T]`: r_t = -kl_coef * kl_t, and at the last token the score `[B]` of the completion added to it.

    Ziegler et al. 2019, eq. 2 (R = r - beta log(pi / rho)), taken token by token. A score of a completion that is
    masked out later may be any finite number.
    """
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    last = mask.sum(-1, keepdim=True).clamp(min=1) - 1
    return rewards.scatter_add(-1, last, scores.to(rewards.dtype).unsqueeze(-1))


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Return (advantages, returns), both `[B, T]`, zero outside of `mask`.

    GAE 2016, eq. 16: A_t = sum_l (gamma lam)^l delta_(t+l) with delta_t = r_t + gamma V_(t+1) - V_t (eq. 9), computed
    backwards as A_t = delta_t + gamma lam A_(t+1); after the last token the value is zero, for nothing follows.
    lam = 0 gives the one-step residual (eq. 17), lam = 1 all that follows minus the value (eq. 18). Returns are
    A_t + V_t, the targets of the value head.
    """
    live = mask.to(values.dtype)
    values, rewards = torch.where(mask, values, 0.0), torch.where(mask, rewards, 0.0)
    later = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    found = torch.zeros_like(values)
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        later = (delta + gamma * lam * later) * live[:, t]
        found[:, t] = later
        next_value = values[:, t]
    return found, found + values


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Return (count, sum, sum of squares) over `mask` in float64 `[3]`: what several processes can add up."""
    there = torch.where(mask, values, 0.0).double()
    return torch.stack([mask.sum().double(), there.sum(), there.square().sum()])


def whiten(values: Tensor, mask: Tensor, totals: Tensor, *, tiny: float = 1e-8) -> Tensor:
    """Return values shifted and scaled to mean 0 and variance 1 over all that `totals` (of `moments`) counts.

    Zero outside of `mask`. A single value, or equal ones, become 0: there is nothing to tell them apart by.
    """
    count, total, squares = totals.unbind()
    mean = total / count.clamp(min=1)
    variance = (squares / count.clamp(min=1) - mean.square()).clamp(min=0)
    scaled = (values - mean.to(values.dtype)) * torch.rsqrt(variance + tiny).to(values.dtype)
    return torch.where(mask, scaled, 0.0)


def policy_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Return (loss, clipped), both `[B, T]`; the loss is to be made smaller.

    PPO 2017, eq. 7: L = min(r A, clip(r, 1 - eps, 1 + eps) A) with r = exp(logp - old_logp). `clipped` is true where
    the clip holds the ratio, so that nothing pulls any further.
    """
    ratio = torch.exp(logp - old_logp)
    free = -advantages * ratio
    held = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(free, held), held > free


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Return `[B, T]`: max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2) / 2 (ppo2; detail 9 of Huang et al.)."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def total_loss(
    policy: Tensor, value: Tensor, entropy: Tensor, *, vf_coef: float, entropy_coef: float
) -> Tensor:
    """Return the loss to be made smaller: PPO 2017, eq. 9, with its sign turned: L_clip + c1 L_vf - c2 H."""
    return policy + vf_coef * value - entropy_coef * entropy


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum over `mask`; NaN and infinity outside of it do not count, nor does their gradient."""
    return torch.where(mask, values, 0.0).sum()
