"""Completions sampled from the policy, as one padded batch of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from services.gpu_agent.trainers.rollouts import Rollout, RolloutPrompt


@dataclass(frozen=True, slots=True)
class Completions:
    """N completions of up to T tokens, after prompts padded on the left to P tokens."""

    input_ids: Tensor
    """int64 `[N, P + T]`."""
    attention_mask: Tensor
    """int64 `[N, P + T]`: 1 at the prompt's tokens and at those of `mask`."""
    mask: Tensor
    """bool `[N, T]`: what the policy chose, its end token too."""
    ended: Tensor
    """bool `[N]`: whether the completion ended by itself."""

    @property
    def length(self) -> int:
        """T, the longest completion in tokens."""
        return int(self.mask.shape[1])

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens in all, padding left out."""
        return int(self.attention_mask.sum())

    def texts(self, tokenizer: Any) -> list[str]:
        """Return what was written, without special tokens."""
        chosen = self.input_ids[:, -self.length :]
        rows = [row[kept].tolist() for row, kept in zip(chosen, self.mask, strict=True)]
        return [str(text) for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def pieces(rows: Tensor, size: int) -> list[Tensor]:
    """Cut a tensor along its rows into pieces of at most `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def rollouts(
    prompts: Sequence[RolloutPrompt],
    completions: Completions,
    logp: Tensor,
    tokenizer: Any,
    *,
    scored: bool,
) -> list[Rollout]:
    """Return the completions as they are judged; `scored` adds their length-normalised log-probability, of `logp` `[N, T]`."""
    lengths = completions.mask.sum(-1)
    scores = torch.where(completions.mask, logp, 0.0).sum(-1) / lengths.clamp(min=1)
    rows = zip(
        prompts,
        completions.texts(tokenizer),
        completions.ended.tolist(),
        scores.tolist(),
        lengths.tolist(),
        strict=True,
    )
    return [
        Rollout(
            prompt,
            text,
            truncated=not ended,
            group=f"p{prompt.index}",
            score=score if scored else None,
            tokens=int(length),
        )
        for prompt, text, ended, score, length in rows
    ]


class _StopAsked(StoppingCriteria):
    """Ends all completions at the next token once a stop is asked for."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full(
            (input_ids.shape[0],), self._should_stop(), dtype=torch.bool, device=input_ids.device
        )


class Sampler:
    """Samples from a policy as the job asks; nothing of the model's own generation settings changes the distribution."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        temperature: float,
        top_p: float,
        max_completion: int,
        micro_batch: int,
        should_stop: Callable[[], bool],
    ) -> None:
        """`max_completion` in tokens; `micro_batch` completions are generated side by side."""
        self._micro_batch = micro_batch
        self._stopping = StoppingCriteriaList([_StopAsked(should_stop)])
        self._should_stop = should_stop
        self._ends = _ends(model, tokenizer)
        self.pad = int(
            tokenizer.pad_token_id
            if tokenizer.pad_token_id is not None
            else min(self._ends, default=0)
        )
        self._config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            # a model's own generation_config.json would fill in what is not said here
            top_k=0,
            min_p=0.0,
            typical_p=1.0,
            epsilon_cutoff=0.0,
            eta_cutoff=0.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            num_beams=1,
            max_new_tokens=max_completion,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=self.pad,
            use_cache=True,
        )

    def sample(self, model: Any, prompts: Sequence[RolloutPrompt]) -> Completions | None:
        """Return one completion for each of `prompts`, in order; None where a stop came in between."""
        width = max(len(p.ids) for p in prompts)
        ids = torch.tensor(
            [[self.pad] * (width - len(p.ids)) + list(p.ids) for p in prompts], device=model.device
        )
        real = torch.tensor(
            [[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts], device=model.device
        )
        parts: list[Tensor] = []
        size = self._micro_batch
        for rows, there in zip(pieces(ids, size), pieces(real, size), strict=True):
            with torch.no_grad():
                made = model.generate(
                    input_ids=rows,
                    attention_mask=there,
                    generation_config=self._config,
                    stopping_criteria=self._stopping,
                )
            if self._should_stop():
                return None
            parts.append(made[:, width:])
        longest = max(part.shape[1] for part in parts)
        chosen = torch.cat(
            [torch.nn.functional.pad(p, (0, longest - p.shape[1]), value=self.pad) for p in parts]
        )
        return assemble(ids, real, chosen, self._ends, self.pad)


def assemble(
    prompt_ids: Tensor, prompt_mask: Tensor, chosen: Tensor, ends: frozenset[int], pad: int
) -> Completions:
    """Put prompts `[N, P]` and chosen tokens `[N, T]` together; what follows the first end token becomes padding."""
    is_end = torch.isin(
        chosen, torch.tensor(sorted(ends), dtype=chosen.dtype, device=chosen.device)
    )
    ends_before = is_end.long().cumsum(-1) - is_end.long()
    mask = ends_before == 0
    kept = torch.where(mask, chosen, pad)
    return Completions(
        torch.cat([prompt_ids, kept], dim=1),
        torch.cat([prompt_mask, mask.long()], dim=1),
        mask,
        is_end.any(-1),
    )


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    own = model.generation_config.eos_token_id
    found = [own] if isinstance(own, int) else list(own or [])
    if tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    return frozenset(int(token) for token in found)
