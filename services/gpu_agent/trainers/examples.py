"""Rows of a dataset, from a file or from the Hugging Face Hub, as checked training examples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.gpu_agent.trainers.failures import TrainingFailure
from shared.jobs.reasons import Reason
from shared.preflight.columns import check_row, choose_shape, shapes
from shared.preflight.finding import Finding, Place
from shared.preflight.paths import looks_like_hub_id
from shared.preflight.rows import Row, read_rows

Message = Mapping[str, Any]
_NAMED_PROBLEMS = 3
_MISSING_CODES = {"dataset_not_found", "dataset_not_readable"}


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation, or one prompt with its response."""

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    response: str = ""
    tools: Any = None
    place: Place = field(default_factory=Place)
    row: Mapping[str, Any] = field(default_factory=dict)
    """All columns, for those that a reward names."""

    @property
    def is_pair(self) -> bool:
        """Whether this is a prompt with one response rather than a conversation."""
        return not self.messages

    def as_messages(self) -> list[dict[str, Any]]:
        """Return the conversation in the form chat templates take."""
        if self.messages:
            return [dict(m) for m in self.messages]
        return [
            {"role": "user", "content": self.prompt},
            {"role": "assistant", "content": self.response},
        ]


def read_examples(path: str, *, field: str) -> Iterator[Example]:
    """Give every row of a file or hub dataset as an example, in bounded memory. `field` is the parameter to name.

    Bad rows are collected, so that the failure names the first of them and counts the rest; it is raised at the end.
    Raises TrainingFailure with `dataset_missing` or `dataset_invalid`.
    """
    return (_example(row) for row in checked_rows(path, field=field, algorithm="sft"))


def checked_rows(
    path: str, *, field: str, algorithm: str, answer_key: str | None = None
) -> Iterator[Row]:
    """Likewise, as the rows that `algorithm` takes; `answer_key` names the column of grpo's reference answers."""
    rows = read_hub(path, field) if _is_hub_id(path) else read_rows(Path(path))
    problems: list[Finding] = []
    count = 0
    shape = None
    accepted = shapes(algorithm, answer_key)
    for item in rows:
        found: Iterable[Finding] = [item] if isinstance(item, Finding) else ()
        if isinstance(item, Row):
            shape = shape or choose_shape(accepted, item.values)
            found = [
                f
                for f in check_row(item.values, shape, algorithm, item.place)
                if f.severity == "error"
            ]
            if not found and not problems:
                yield item
        for finding in found:
            count += 1
            if len(problems) < _NAMED_PROBLEMS:
                problems.append(finding)
    if problems:
        raise _invalid(path, field, problems, count)


def read_hub(name: str, field: str) -> Iterator[Row]:
    """Read a dataset of the Hugging Face Hub: `train`, and for evaluation the first of validation, test, train."""
    from datasets import get_dataset_split_names, load_dataset

    name, _, revision = name.partition("@")
    options = {"revision": revision or None, "token": os.environ.get("HF_TOKEN")}
    wanted = ("train",) if field == "train_data_path" else ("validation", "test", "train")
    there = get_dataset_split_names(name, **options)
    split = next((s for s in wanted if s in there), None)
    if split is None:
        raise TrainingFailure(
            Reason.DATASET_INVALID,
            f"{field}: {name} has no split {' or '.join(wanted)}; it has {', '.join(there)}.",
            f"{field}：{name} 没有 {' 或 '.join(wanted)} 分片；现有 {'、'.join(there)}。",
        )
    for number, values in enumerate(load_dataset(name, split=split, **options), 1):
        yield Row(Place(row=number), dict(values))


def _is_hub_id(path: str) -> bool:
    return not Path(path).is_absolute() and not Path(path).exists() and looks_like_hub_id(path)


def _example(row: Row) -> Example:
    values = row.values
    messages = values.get("messages")
    if isinstance(messages, list):
        kept = tuple({k: v for k, v in m.items() if v is not None} for m in messages)
        return Example(messages=kept, tools=values.get("tools"), place=row.place, row=values)
    prompt, response = str(values["prompt"]), str(values["response"])
    return Example(prompt=prompt, response=response, place=row.place, row=values)


def _invalid(path: str, field: str, problems: list[Finding], count: int) -> TrainingFailure:
    missing = all(p.code in _MISSING_CODES for p in problems)
    more = count - len(problems)
    en = " ".join(p.message_en for p in problems) + (f" And {more} more." if more else "")
    zh = "".join(p.message_zh for p in problems) + (f"另有 {more} 处。" if more else "")
    name = Path(path).name
    return TrainingFailure(
        Reason.DATASET_MISSING if missing else Reason.DATASET_INVALID,
        f"{field} {name}: {en}",
        f"{field} {name}：{zh}",
    )
