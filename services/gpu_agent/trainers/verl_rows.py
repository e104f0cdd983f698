"""The dataset as verl 0.7.0 reads it: Parquet with `prompt` as a conversation and the reference answer beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow
import pyarrow.parquet

from services.gpu_agent.trainers import examples
from services.gpu_agent.trainers.failures import TrainingFailure
from shared.jobs.reasons import Reason
from shared.preflight.finding import Finding
from shared.preflight.paths import looks_like_hub_id
from shared.preflight.rows import Row, read_rows

SOURCE: Final = "trainyard"
_SCHEMA: Final = pyarrow.schema(
    [
        ("data_source", pyarrow.string()),
        (
            "prompt",
            pyarrow.list_(
                pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
            ),
        ),
        ("reward_model", pyarrow.struct([("ground_truth", pyarrow.string())])),
        ("extra_info", pyarrow.struct([("index", pyarrow.int64()), ("row", pyarrow.string())])),
    ]
)


def write(path: str, field: str, answer_key: str, target: Path) -> int:
    """Write the rows of a checked dataset to `target` and return how many. Raises TrainingFailure, OSError.

    A row is refused where it has no prompt; preflight has looked at all of them before.
    """
    rows = [to_verl(values, number, answer_key) for number, values in enumerate(_rows(path, field))]
    if not rows:
        raise TrainingFailure(
            Reason.DATASET_INVALID, f"{field} holds no rows.", f"{field} 中没有数据。"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_SCHEMA), target)
    return len(rows)


def to_verl(values: dict[str, Any], number: int, answer_key: str) -> dict[str, Any]:
    """Return one row: a text prompt becomes one message of the user."""
    prompt = values["prompt"]
    messages = (
        [{"role": str(m["role"]), "content": str(m["content"])} for m in prompt]
        if isinstance(prompt, list)
        else [{"role": "user", "content": str(prompt)}]
    )
    answer = values.get(answer_key)
    return {
        "data_source": SOURCE,
        "prompt": messages,
        "reward_model": {"ground_truth": None if answer is None else str(answer)},
        "extra_info": {"index": number, "row": json.dumps(values, ensure_ascii=False, default=str)},
    }


def _rows(path: str, field: str) -> Iterator[dict[str, Any]]:
    local = Path(path).is_absolute() or Path(path).exists() or not looks_like_hub_id(path)
    for item in read_rows(Path(path)) if local else examples.read_hub(path, field):
        if isinstance(item, Finding):
            raise TrainingFailure(Reason.DATASET_INVALID, item.message_en, item.message_zh)
        assert isinstance(item, Row)
        yield dict(item.values)
