"""Examples as token ids and labels: loss on what the assistant says, on nothing else.

With a chat template a prompt with its response is a conversation of two turns; without one it is plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from services.gpu_agent.trainers.examples import Example
from services.gpu_agent.trainers.failures import TrainingFailure
from shared.jobs.reasons import Reason

IGNORED = -100
_CHUNK = 1000
_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A dataset ready for the trainer, and what happened to its rows."""

    dataset: Dataset
    rows: int
    cut: int
    """Rows longer than the context length, cut at its end."""
    dropped: int
    """Rows of which the cut left nothing to learn from."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """An evaluation prompt as the model gets it, as people read it, and the answer it should give."""

    text: str
    shown: str
    reference: str
    special_tokens: bool
    """Whether the tokenizer must still add its own begin token (plain text)."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """All columns of the row, for those that a reward names."""


class ExampleEncoder:
    """Turns examples into ids with one tokenizer."""

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._template = _training_template(tokenizer)
        self._chat = bool(tokenizer.chat_template)

    def encode(self, examples: Iterable[Example], name: str) -> Encoded:
        """Encode all examples. `name` tells datasets apart. Raises TrainingFailure where nothing is left to learn."""
        ids_chunks: list[Any] = []
        label_chunks: list[Any] = []
        rows = cut = dropped = 0
        remaining = iter(examples)
        while chunk := list(islice(remaining, _CHUNK)):
            ids_kept, labels_kept = [], []
            for ids, labels in self.encode_chunk(chunk):
                rows += 1
                cut += len(ids) > self._context_length
                short_labels = labels[: self._context_length]
                if all(label == IGNORED for label in short_labels):
                    dropped += 1
                    continue
                ids_kept.append(ids[: self._context_length])
                labels_kept.append(short_labels)
            ids_chunks.append(pa.array(ids_kept, pa.list_(pa.int32())))
            label_chunks.append(pa.array(labels_kept, pa.list_(pa.int32())))
        if rows == dropped:
            raise _nothing_left(name, rows, self._context_length)
        table = pa.table(
            {"input_ids": pa.chunked_array(ids_chunks), "labels": pa.chunked_array(label_chunks)}
        )
        return Encoded(Dataset(InMemoryTable(table), fingerprint=name), rows, cut, dropped)

    def encode_chunk(self, examples: list[Example]) -> Iterator[tuple[list[int], list[int]]]:
        """Give (ids, labels) of each example, uncut, in order."""
        if not self._chat and any(not e.is_pair for e in examples):
            raise TrainingFailure(
                Reason.MODEL_INVALID,
                "The dataset holds conversations (messages) but the model's tokenizer has no chat template. "
                "Use an instruct model, or rows with prompt and response.",
                "数据集是对话（messages）格式，但模型的分词器没有对话模板。请使用 instruct 模型，或改用 prompt/response 数据。",
            )
        if all(e.is_pair for e in examples):
            return self._pairs(examples)
        return self._conversations(examples)

    def prompts(self, examples: Iterable[Example], limit: int) -> list[Prompt]:
        """Return the first `limit` examples as prompts with the answer expected of the last turn."""
        return [self._prompt(example) for example in islice(examples, limit)]

    def _prompt(self, example: Example) -> Prompt:
        if not self._chat:
            text, response = example.prompt, example.response
            return Prompt(text, text, response, special_tokens=True, row=example.row)
        messages = example.as_messages()
        text = self._render(messages[:-1], example, add_generation_prompt=True)
        asked = str(messages[-2]["content"]) if len(messages) > 1 else ""
        reference = str(messages[-1]["content"])
        return Prompt(text, asked, reference, special_tokens=False, row=example.row)

    def _pairs(self, examples: list[Example]) -> Iterator[tuple[list[int], list[int]]]:
        if self._chat:
            conversations = [e.as_messages() for e in examples]
            before = [
                self._render(c[:-1], e, add_generation_prompt=True)
                for c, e in zip(conversations, examples, strict=True)
            ]
            whole = [self._render(c, e) for c, e in zip(conversations, examples, strict=True)]
        else:
            before = [e.prompt for e in examples]
            whole = [e.prompt + e.response + self._end(e.response) for e in examples]
        prompt_ids = self._ids(before)
        for prompt, ids in zip(prompt_ids, self._ids(whole), strict=True):
            start = _common_prefix(prompt, ids)
            yield ids, [IGNORED] * start + ids[start:]

    def _conversations(self, examples: list[Example]) -> Iterator[tuple[list[int], list[int]]]:
        for example in examples:
            messages = example.as_messages()
            if self._template is not None:
                done = self._tokenizer.apply_chat_template(
                    messages,
                    chat_template=self._template,
                    tools=example.tools,
                    tokenize=True,
                    return_dict=True,
                    return_assistant_tokens_mask=True,
                )
                ids, mask = list(done["input_ids"]), list(done["assistant_masks"])
            else:
                ids, mask = self._masked_by_prefix(messages, example)
            if not any(mask):
                raise TrainingFailure(
                    Reason.DATASET_INVALID,
                    f"{example.place.en}: the chat template leaves no text of the assistant to learn from.",
                    f"{example.place.zh}：对话模板没有留下可学习的 assistant 文本。",
                )
            yield ids, [token if taken else IGNORED for token, taken in zip(ids, mask, strict=True)]

    def _masked_by_prefix(
        self, messages: list[dict[str, Any]], example: Example
    ) -> tuple[list[int], list[int]]:
        """Find the assistant's characters by rendering up to and past each of its turns."""
        text = self._render(messages, example)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:number], example, add_generation_prompt=True)
            through = self._render(messages[: number + 1], example)
            if not (text.startswith(before) and text.startswith(through)):
                raise TrainingFailure(
                    Reason.MODEL_INVALID,
                    f"{example.place.en}: the model's chat template changes earlier turns, so the assistant's text cannot be "
                    "told apart. Use a template with {% generation %}, or rows with prompt and response.",
                    f"{example.place.zh}：模型的对话模板会改写之前的轮次，无法区分 assistant 文本。"
                    "请使用带 {% generation %} 的模板，或改用 prompt/response 数据。",
                )
            spans.append((len(before), len(through)))
        done = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        mask = [int(any(a <= start < b for a, b in spans)) for start, _ in done["offset_mapping"]]
        return list(done["input_ids"]), mask

    def _render(self, messages: list[dict[str, Any]], example: Example, **options: Any) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tools=example.tools,
                tokenize=False,
                **options,
            )
        )

    def _ids(self, texts: list[str]) -> list[list[int]]:
        done = self._tokenizer(
            texts, add_special_tokens=not self._chat, return_attention_mask=False
        )
        return list(done["input_ids"])

    def _end(self, response: str) -> str:
        end = self._tokenizer.eos_token or ""
        return "" if response.endswith(end) else end


def _training_template(tokenizer: Any) -> str | None:
    """Return a template that marks the assistant's text, or None where only rendering can tell."""
    from trl.chat_template_utils import get_training_chat_template

    template = tokenizer.chat_template
    if not isinstance(template, str):
        return None
    try:
        replacement = get_training_chat_template(tokenizer)
    except Exception:  # noqa: BLE001 - a template outside trl's list, or one its probes cannot render
        replacement = None
        if not _has_mark(template):
            return None
    return str(replacement) if replacement else template


def _has_mark(template: str) -> bool:
    return _GENERATION_MARK.search(template) is not None


def _common_prefix(first: list[int], second: list[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )


def no_rows(name: str) -> TrainingFailure:
    """Return the failure for a dataset that is empty."""
    return TrainingFailure(
        Reason.DATASET_INVALID, f"The {name} dataset holds no rows.", f"{name} 数据集没有数据。"
    )


def _nothing_left(name: str, rows: int, context_length: int) -> TrainingFailure:
    if rows == 0:
        return no_rows(name)
    return TrainingFailure(
        Reason.DATASET_INVALID,
        f"No row of the {name} dataset has an answer within context_length {context_length}: raise context_length, or shorten the prompts.",
        f"{name} 数据集没有任何一条的回答落在 context_length {context_length} 以内：请增大 context_length 或缩短 prompt。",
    )
