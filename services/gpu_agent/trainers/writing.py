"""Greedy completions of tokenized prompts, in batches padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig


@dataclass(frozen=True, slots=True)
class Written:
    """What the model wrote after one prompt."""

    text: str
    truncated: bool
    """It did not end by itself."""
    tokens: int
    """Its end token included."""


def write_greedily(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    batch_size: int,
    give_way: Callable[[], None],
) -> list[Written]:
    """Return the likeliest completion of each prompt, at most `new_tokens` long. `give_way` is called before each batch."""
    config = _generation_config(model, tokenizer, new_tokens)
    found: list[Written] = []
    for start in range(0, len(prompts), batch_size):
        give_way()
        found.extend(_batch(model, tokenizer, config, prompts[start : start + batch_size]))
    return found


def _batch(
    model: Any, tokenizer: Any, config: Any, prompts: Sequence[Sequence[int]]
) -> list[Written]:
    width = max(len(ids) for ids in prompts)
    pad = config.pad_token_id
    rows = torch.tensor(
        [[pad] * (width - len(ids)) + list(ids) for ids in prompts], device=model.device
    )
    mask = torch.tensor(
        [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device
    )
    with torch.inference_mode():
        generated = model.generate(input_ids=rows, attention_mask=mask, generation_config=config)
    ends = set(config.eos_token_id)
    written = []
    for row in generated[:, width:].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), None)
        text = tokenizer.decode(row[:stop], skip_special_tokens=True)
        written.append(Written(text, stop is None, len(row) if stop is None else stop + 1))
    return written


def _generation_config(model: Any, tokenizer: Any, new_tokens: int) -> Any:
    own = model.generation_config.eos_token_id
    ends = [own] if isinstance(own, int) else list(own or [])
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=sorted(set(ends)),
        pad_token_id=tokenizer.pad_token_id
        if tokenizer.pad_token_id is not None
        else (ends[0] if ends else 0),
        use_cache=True,
    )
