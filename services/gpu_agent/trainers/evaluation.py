"""Greedy answers to evaluation prompts, compared with the reference answers: `eval_accuracy`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from services.gpu_agent.trainers.encoding import Prompt
from services.gpu_agent.trainers.matching import matches

_MIN_NEW_TOKENS = 16
_BATCH_AT_LEAST = 16
SHOWN_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote for one prompt."""

    prompt: Prompt
    completion: str
    correct: bool
    truncated: bool
    """It did not end by itself."""


class AnswerChecker:
    """Generates and checks answers; the prompts are tokenized once."""

    def __init__(
        self, tokenizer: Any, prompts: list[Prompt], context_length: int, batch_size: int
    ) -> None:
        self._tokenizer = tokenizer
        self._batch_size = max(batch_size, _BATCH_AT_LEAST)
        self._items = [
            (
                p,
                tokenizer(p.text, add_special_tokens=p.special_tokens)["input_ids"][
                    -context_length + 1 :
                ],
            )
            for p in prompts
        ]
        # An answer twice as long as the longest reference can no longer be that reference with room to think before it.
        references = tokenizer([p.reference for p in prompts], add_special_tokens=False)[
            "input_ids"
        ]
        wanted = 2 * max(len(ids) for ids in references) + _MIN_NEW_TOKENS
        self._new_tokens = max(
            1, min(wanted, context_length - max(len(ids) for _, ids in self._items))
        )

    def answers(self, model: Any, give_way: Callable[[], None]) -> list[Answer]:
        """Answer every prompt greedily, in batches padded on the left. `give_way` is called before each batch."""
        config = self._generation_config(model)
        found: list[Answer] = []
        for start in range(0, len(self._items), self._batch_size):
            give_way()
            batch = self._items[start : start + self._batch_size]
            found.extend(self._answer_batch(model, config, batch))
        return found

    def _answer_batch(
        self, model: Any, config: Any, batch: list[tuple[Prompt, list[int]]]
    ) -> list[Answer]:
        width = max(len(ids) for _, ids in batch)
        pad = config.pad_token_id
        rows = torch.tensor(
            [[pad] * (width - len(ids)) + ids for _, ids in batch], device=model.device
        )
        mask = torch.tensor(
            [[0] * (width - len(ids)) + [1] * len(ids) for _, ids in batch], device=model.device
        )
        with torch.inference_mode():
            generated = model.generate(
                input_ids=rows, attention_mask=mask, generation_config=config
            )
        ends = set(config.eos_token_id)
        answers = []
        for (prompt, _), row in zip(batch, generated[:, width:].tolist(), strict=True):
            stop = next((i for i, token in enumerate(row) if token in ends), None)
            text = self._tokenizer.decode(row[:stop], skip_special_tokens=True)
            answers.append(
                Answer(prompt, text, matches(text, prompt.reference), truncated=stop is None)
            )
        return answers

    def _generation_config(self, model: Any) -> Any:
        own = model.generation_config.eos_token_id
        ends = [own] if isinstance(own, int) else list(own or [])
        if self._tokenizer.eos_token_id is not None:
            ends.append(self._tokenizer.eos_token_id)
        return GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=self._new_tokens,
            eos_token_id=sorted(set(ends)),
            pad_token_id=self._tokenizer.pad_token_id
            if self._tokenizer.pad_token_id is not None
            else (ends[0] if ends else 0),
            use_cache=True,
        )
