"""Preference pairs as token ids, in the very text that fine-tuning gives: one prompt, a chosen and a rejected answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from services.gpu_agent.trainers.context import TrainContext
from services.gpu_agent.trainers.encoding import IGNORED, ExampleEncoder, no_rows
from services.gpu_agent.trainers.examples import Example, checked_rows
from services.gpu_agent.trainers.failures import TrainingFailure
from shared.jobs.reasons import Reason

_CHUNK = 500
Columns = dict[str, list[int]]
Encoding = tuple[list[int], list[int]]
"""Ids, and labels that are IGNORED as far as the prompt goes."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The same prompt with the better and the worse answer."""

    chosen: Example
    rejected: Example


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """A dataset ready for the trainer, and what happened to its pairs."""

    dataset: Dataset
    rows: int
    cut: int
    """Pairs of which an answer (a prompt, for reward models) was cut to fit into the context length."""
    dropped: int
    """Pairs of which the cut left nothing to tell apart."""


def read_pairs(path: str, *, field: str) -> Iterator[Pair]:
    """Give every row of a file or hub dataset as a pair. Raises TrainingFailure as `checked_rows` does."""
    for row in checked_rows(path, field=field, algorithm="dpo"):
        prompt, chosen, rejected = (str(row.values[n]) for n in ("prompt", "chosen", "rejected"))
        yield Pair(
            Example(prompt=prompt, response=chosen, place=row.place),
            Example(prompt=prompt, response=rejected, place=row.place),
        )


class PairEncoder:
    """`cut`: `end` shortens answers, as for a language model; `start` shortens prompts, as the reward service does."""

    def __init__(
        self, tokenizer: Any, context_length: int, cut: Literal["end", "start"] = "end"
    ) -> None:
        self.examples = ExampleEncoder(tokenizer, context_length)
        self._limit = context_length
        self._cut = cut

    def encode(self, pairs: Iterable[Pair], name: str) -> EncodedPairs:
        """Encode all pairs. `name` tells datasets apart. Raises TrainingFailure where nothing is left to learn."""
        kept: list[Columns] = []
        rows = cut = dropped = 0
        remaining = iter(pairs)
        while chunk := list(islice(remaining, _CHUNK)):
            both = list(chain.from_iterable((p.chosen, p.rejected) for p in chunk))
            encoded = iter(self.examples.encode_chunk(both))
            for chosen, rejected in zip(encoded, encoded, strict=True):
                rows += 1
                cut += max(len(chosen[0]), len(rejected[0])) > self._limit
                fit = (
                    self._ends(chosen, rejected)
                    if self._cut == "end"
                    else self._starts(chosen, rejected)
                )
                if fit is None:
                    dropped += 1
                else:
                    kept.append(fit)
        if not kept:
            raise _nothing_left(name, rows, self._limit)
        table = pa.table({c: pa.array([k[c] for k in kept], pa.list_(pa.int32())) for c in kept[0]})
        return EncodedPairs(Dataset(InMemoryTable(table), fingerprint=name), rows, cut, dropped)

    def _ends(self, chosen: Encoding, rejected: Encoding) -> Columns | None:
        """Return prompt and answers, cut at their ends; None where no token of the answers differs any more."""
        asked = min(_prompt_length(chosen[1]), _prompt_length(rejected[1]))
        better, worse = chosen[0][asked : self._limit], rejected[0][asked : self._limit]
        if better == worse or not better or not worse:
            return None
        return {"prompt_ids": chosen[0][:asked], "chosen_ids": better, "rejected_ids": worse}

    def _starts(self, chosen: Encoding, rejected: Encoding) -> Columns | None:
        """Return whole texts, their prompts cut at the start; None where an answer alone is too long, or both are the same."""
        found = []
        for ids, labels in (chosen, rejected):
            if len(ids) - _prompt_length(labels) >= self._limit:
                return None
            found.append(ids[-self._limit :])
        if found[0] == found[1]:
            return None
        return {"chosen_ids": found[0], "rejected_ids": found[1]}


def load_pairs(
    context: TrainContext, encoder: PairEncoder, path: str, field: Literal["train", "eval"]
) -> Dataset:
    """Read, encode and report one dataset of the job. Raises TrainingFailure."""
    encoded = encoder.encode(read_pairs(path, field=f"{field}_data_path"), field)
    context.info(f"{encoded.rows} pairs in the {field} dataset")
    if encoded.cut or encoded.dropped:
        context.warning(
            f"{encoded.cut} of {encoded.rows} pairs of the {field} dataset are longer than context_length and were cut; "
            f"{encoded.dropped} pairs are left out because nothing of them is left to tell apart. "
            "Raise context_length to use them whole."
        )
    return encoded.dataset


def _prompt_length(labels: list[int]) -> int:
    return next((n for n, label in enumerate(labels) if label != IGNORED), len(labels))


def _nothing_left(name: str, rows: int, context_length: int) -> TrainingFailure:
    if rows == 0:
        return no_rows(name)
    return TrainingFailure(
        Reason.DATASET_INVALID,
        f"No pair of the {name} dataset differs within context_length {context_length}: raise context_length, or shorten the prompts.",
        f"{name} 数据集没有任何一对回答在 context_length {context_length} 以内有区别：请增大 context_length 或缩短 prompt。",
    )
