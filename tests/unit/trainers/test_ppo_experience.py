"""From verdicts to advantages, rows to minibatches, tokens to completions: laws that hold for any batch."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

LIMITED = settings(max_examples=50, deadline=None)
END, PAD = 7, 0


def completions(lengths: list[int], width: int) -> Any:
    """Completions that end by themselves after `lengths` tokens."""
    import torch

    from services.gpu_agent.trainers.ppo_rollout import assemble

    rows = [[5] * (n - 1) + [END] + [3] * (width - n) for n in lengths]
    prompts = torch.full((len(rows), 2), 4)
    return assemble(prompts, torch.ones_like(prompts), torch.tensor(rows), frozenset({END}), PAD)


def lessons(rewards: list[float | None], lengths: list[int], noise: float = 0.0) -> Any:
    import torch

    from services.gpu_agent.trainers.ppo_experience import experience
    from services.gpu_agent.trainers.settings import PpoSettings

    made = completions(lengths, max(lengths))
    generator = torch.Generator().manual_seed(1)
    logp, ref, values = (torch.randn(made.mask.shape, generator=generator) for _ in range(3))
    unjudged = torch.tensor([r is None for r in rewards]).unsqueeze(-1)
    values = torch.where(unjudged, values + noise, values)
    return experience(made, logp, ref, values, rewards, PpoSettings(kl_coef=0.1))


def test_what_follows_the_end_is_padding() -> None:
    import torch

    from services.gpu_agent.trainers.ppo_rollout import assemble

    chosen = torch.tensor([[5, END, 3, END], [5, 5, 5, 5], [END, 0, 0, 0]])
    prompts = torch.tensor([[0, 4], [4, 4], [4, 4]])
    made = assemble(prompts, (prompts > 0).long(), chosen, frozenset({END}), PAD)
    assert made.mask.tolist() == [
        [True, True, False, False],
        [True] * 4,
        [True, False, False, False],
    ]
    assert made.input_ids.tolist() == [
        [0, 4, 5, END, 0, 0],
        [4, 4, 5, 5, 5, 5],
        [4, 4, END, 0, 0, 0],
    ]
    assert made.attention_mask.tolist()[0] == [0, 1, 1, 1, 0, 0]
    assert made.ended.tolist() == [True, False, True]
    assert made.tokens == 3 + 6 + 3
    endless = assemble(prompts, (prompts > 0).long(), chosen, frozenset(), PAD)
    assert endless.mask.all()
    assert not endless.ended.any()


def test_rows_without_a_verdict_change_nothing_for_the_others() -> None:
    import torch

    rewards = [1.0, None, 0.25, None]
    found, noisy = lessons(rewards, [3, 5, 2, 4]), lessons(rewards, [3, 5, 2, 4], noise=1e4)
    assert found.judged.tolist() == [True, False, True, False]
    assert not found.mask[1].any()
    assert not found.advantages[[1, 3]].any()
    assert torch.equal(found.advantages, noisy.advantages)
    assert found.row_advantages()[1] == 0.0
    alone = lessons([1.0, 0.0, 0.25, 0.0], [3, 5, 2, 4])
    assert not torch.equal(found.advantages[0], alone.advantages[0])  # zero would have been heard


def test_terms_of_masked_rows_have_no_gradient() -> None:
    import torch

    from services.gpu_agent.trainers.ppo_experience import terms
    from services.gpu_agent.trainers.settings import PpoSettings

    found = lessons([1.0, None], [3, 3])
    seen = [torch.randn(2, 3, requires_grad=True) for _ in range(3)]
    sums = terms((seen[0], seen[1], seen[2]), found, torch.arange(2), PpoSettings(entropy_coef=0.1))
    sums[0].backward()
    assert sums.shape == (6,)
    for tensor in seen:
        assert tensor.grad is not None
        assert tensor.grad[0].any()
        assert not tensor.grad[1].any()


def test_pieces_of_a_minibatch_add_up_to_it() -> None:
    import torch

    from services.gpu_agent.trainers.ppo_experience import terms
    from services.gpu_agent.trainers.settings import PpoSettings

    found = lessons([1.0, None, 0.5, 0.0, 0.3], [3, 2, 4, 1, 4])
    seen = torch.randn(3, 5, 4)
    chosen = PpoSettings(entropy_coef=0.1)

    def of(rows: Any) -> Any:
        return terms((seen[0, rows], seen[1, rows], seen[2, rows]), found, rows, chosen)

    whole = of(torch.arange(5))
    torch.testing.assert_close(of(torch.tensor([4, 0])) + of(torch.tensor([2, 1, 3])), whole)


@LIMITED
@given(judged=st.lists(st.booleans(), min_size=1, max_size=40), count=st.integers(1, 50))
def test_every_row_is_dealt_once_and_verdicts_evenly(judged: list[bool], count: int) -> None:
    import torch

    from services.gpu_agent.trainers.ppo_experience import minibatches

    flags = torch.tensor(judged)
    dealt = minibatches(flags, count)
    assert sorted(torch.cat(dealt).tolist()) == list(range(len(judged)))
    assert len(dealt) == min(count, len(judged))
    shares = [int(flags[rows].sum()) for rows in dealt]
    assert max(shares) - min(shares) <= 1
    assert shares[-1] == max(shares)  # the last update is never the one that is short


@LIMITED
@given(
    rewards=st.lists(st.none() | st.floats(-3, 3), min_size=2, max_size=8),
    width=st.integers(2, 6),
)
def test_advantages_are_white_over_the_judged_tokens(
    rewards: list[float | None], width: int
) -> None:
    found = lessons(rewards, [1 + n % width for n in range(len(rewards))])
    kept = found.advantages[found.mask]
    assert found.advantages.isfinite().all()
    if len(kept) > 1 and float(kept.std()) > 0.1:
        assert float(kept.mean()) == pytest.approx(0, abs=1e-3)
        assert float(kept.std(unbiased=False)) == pytest.approx(1, abs=1e-2)
