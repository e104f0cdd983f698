"""The equations of PPO against figures worked out by hand, and laws that hold for any figures."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

LIMITED = settings(max_examples=60, deadline=None)
finite = st.floats(-5, 5, allow_nan=False, width=32)


def equations() -> Any:
    from services.gpu_agent.trainers import ppo_losses

    return ppo_losses


def tensor(values: Any, **more: Any) -> Any:
    import torch

    return torch.tensor(values, **more)


def near(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    import torch

    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=found.dtype), atol=tolerance, rtol=tolerance
    )


def test_logprobs_and_entropy_of_three_tokens() -> None:
    logits = tensor([[[math.log(2.0), math.log(1.0), math.log(1.0)]]])
    chosen, entropy = equations().token_logprobs(logits, tensor([[0]]), 1.0)
    near(chosen, [[math.log(0.5)]])
    near(entropy, [[1.5 * math.log(2)]])  # 1/2 ln 2 + 2 x 1/4 ln 4
    colder, _ = equations().token_logprobs(logits, tensor([[0]]), 0.5)
    near(colder, [[math.log(4 / 6)]])  # squares 4, 1, 1


def test_kl_estimators() -> None:
    p, q = tensor([[math.log(0.5)]]), tensor([[math.log(0.25)]])
    near(equations().kl_k1(p, q), [[math.log(2)]])
    near(equations().kl_k3(p, q), [[0.5 - 1 + math.log(2)]])


def test_the_k3_mean_is_the_kl() -> None:
    p, q = tensor([0.7, 0.2, 0.1]), tensor([0.3, 0.3, 0.4])
    exact = float((p * (p / q).log()).sum())
    for estimator in (equations().kl_k1, equations().kl_k3):
        assert float((p * estimator(p.log(), q.log())).sum()) == pytest.approx(exact, abs=1e-6)


def test_the_score_stands_at_the_last_token_and_the_penalty_at_each() -> None:
    mask = tensor([[True, True, False], [True, True, True]])
    kl = tensor([[0.5, -1.0, 99.0], [0.0, 0.0, 2.0]])
    near(
        equations().token_rewards(tensor([1.0, 3.0]), kl, mask, 0.1),
        [[-0.05, 1.1, 0.0], [0.0, 0.0, 2.8]],
    )


def test_advantages_by_hand() -> None:
    rewards, values = tensor([[0.0, 0.0, 1.0, 7.0]]), tensor([[0.5, 0.4, 0.2, 7.0]])
    mask = tensor([[True, True, True, False]])
    # residuals 0.4 - 0.5, 0.2 - 0.4, 1 - 0.2
    advantages, returns = equations().generalized_advantages(
        rewards, values, mask, gamma=1.0, lam=0.5
    )
    near(advantages, [[-0.1 + 0.5 * (-0.2 + 0.5 * 0.8), -0.2 + 0.5 * 0.8, 0.8, 0.0]])
    near(returns, [[0.5, 0.6, 1.0, 0.0]])
    discounted, _ = equations().generalized_advantages(rewards, values, mask, gamma=0.5, lam=1.0)
    near(discounted, [[0.25 - 0.5, 0.5 - 0.4, 0.8, 0.0]])


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_the_two_ends_of_lambda(lam: float) -> None:
    rewards, values = tensor([[0.3, -0.2, 1.0]]), tensor([[0.5, 0.4, 0.2]])
    mask = tensor([[True, True, True]])
    found, _ = equations().generalized_advantages(rewards, values, mask, gamma=1.0, lam=lam)
    residuals = [[0.3 + 0.4 - 0.5, -0.2 + 0.2 - 0.4, 1 - 0.2]]
    rest = [[1.1 - 0.5, 0.8 - 0.4, 1 - 0.2]]
    near(found, rest if lam else residuals)


def test_whitening_over_what_counts() -> None:
    import torch

    values, mask = tensor([[1.0, 3.0, 50.0]]), tensor([[True, True, False]])
    near(equations().whiten(values, mask, equations().moments(values, mask)), [[-1.0, 1.0, 0.0]])
    halves = equations().moments(values[:, :1], mask[:, :1]) + equations().moments(
        values[:, 1:], mask[:, 1:]
    )
    assert torch.equal(halves, equations().moments(values, mask))
    single = tensor([[True, False, False]])
    near(equations().whiten(values, single, equations().moments(values, single)), [[0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.4, True),  # far enough up
        (0.5, 2.0, -1.0, False),  # too far down: it may come back
        (1.5, -2.0, 3.0, False),
        (0.5, -2.0, 1.6, True),
    ],
)
def test_the_clipped_ratio(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    logp = tensor([[math.log(ratio)]], requires_grad=True)
    found, held = equations().policy_loss(logp, tensor([[0.0]]), tensor([[advantage]]), 0.2)
    near(found.detach(), [[loss]])
    assert held.tolist() == [[clipped]]
    found.sum().backward()
    near(logp.grad, [[0.0 if clipped else -advantage * ratio]])


@pytest.mark.parametrize(
    ("value", "loss", "slope"),
    [
        (0.1, 0.5 * 0.81, -0.9),
        (0.5, 0.5 * 0.64, 0.0),  # past 0.2 on the way to the target: held
        (-0.5, 0.5 * 2.25, -1.5),  # past 0.2 away from it: pulled back
    ],
)
def test_the_clipped_value(value: float, loss: float, slope: float) -> None:
    values = tensor([[value]], requires_grad=True)
    found = equations().value_loss(values, tensor([[0.0]]), tensor([[1.0]]), 0.2)
    near(found.detach(), [[loss]])
    found.sum().backward()
    near(values.grad, [[slope]])


def test_the_whole_loss() -> None:
    found = equations().total_loss(
        tensor(1.0), tensor(2.0), tensor(3.0), vf_coef=0.1, entropy_coef=0.01
    )
    near(found, 1.0 + 0.2 - 0.03)


def test_what_lies_outside_of_the_mask_never_counts() -> None:
    import torch

    values = tensor([[1.0, float("nan"), float("inf")]], requires_grad=True)
    total = equations().masked_sum(values, tensor([[True, False, False]]))
    total.backward()
    assert total.item() == 1.0
    assert torch.equal(values.grad, tensor([[1.0, 0.0, 0.0]]))


@LIMITED
@given(
    rows=st.lists(st.lists(st.tuples(finite, finite), min_size=1, max_size=6), min_size=1, max_size=4),
    gamma=st.floats(0, 1), lam=st.floats(0, 1),
)  # fmt: skip
def test_advantages_are_the_sum_of_the_paper(
    rows: list[list[tuple[float, float]]], gamma: float, lam: float
) -> None:
    """Eq. 16 written out, for completions of any length side by side."""
    width = max(map(len, rows))
    rewards = tensor([[r for r, _ in row] + [9.0] * (width - len(row)) for row in rows])
    values = tensor([[v for _, v in row] + [9.0] * (width - len(row)) for row in rows])
    mask = tensor([[i < len(row) for i in range(width)] for row in rows])
    found, returns = equations().generalized_advantages(rewards, values, mask, gamma=gamma, lam=lam)
    for number, row in enumerate(rows):
        after = [v for _, v in row[1:]] + [0.0]
        residual = [r + gamma * n - v for (r, v), n in zip(row, after, strict=True)]
        for t in range(len(row)):
            expected = sum((gamma * lam) ** k * d for k, d in enumerate(residual[t:]))
            assert float(found[number, t]) == pytest.approx(expected, abs=1e-3)
            assert float(returns[number, t]) == pytest.approx(expected + row[t][1], abs=1e-3)
        assert not found[number, len(row) :].any()


@LIMITED
@given(
    new=st.lists(finite, min_size=3, max_size=3), old=st.lists(finite, min_size=3, max_size=3),
    advantages=st.lists(finite, min_size=3, max_size=3), clip=st.floats(0.01, 0.99),
)  # fmt: skip
def test_the_clipped_loss_is_a_bound_and_free_where_nothing_moved(
    new: list[float], old: list[float], advantages: list[float], clip: float
) -> None:
    import torch

    logp, before, adv = tensor([new]), tensor([old]), tensor([advantages])
    found, _ = equations().policy_loss(logp, before, adv, clip)
    assert (found >= -adv * torch.exp(logp - before) - 1e-3).all()
    same, held = equations().policy_loss(logp, logp, adv, clip)
    assert torch.equal(same, -adv)
    assert not held.any()
    assert (equations().kl_k3(logp, before) >= -1e-6).all()


@LIMITED
@given(values=st.lists(finite, min_size=2, max_size=12))
def test_whitened_values_have_mean_zero_and_one_spread(values: list[float]) -> None:
    import torch

    if max(values) - min(values) < 0.1:
        return
    row = tensor([values])
    mask = torch.ones_like(row, dtype=torch.bool)
    white = equations().whiten(row, mask, equations().moments(row, mask))
    assert float(white.mean()) == pytest.approx(0, abs=1e-3)
    assert float(white.std(unbiased=False)) == pytest.approx(1, abs=1e-3)
