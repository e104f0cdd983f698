"""Pure conversion of what an agent sends into rows of `record` and `metric_line`; nothing here may raise on odd input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import orjson

Row = dict[str, Any]
LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}
LEVEL_NAMES = {number: name for name, number in LEVELS.items()}
NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
MAX_NAME = 200
MAX_MESSAGE = 16_384
"""Characters of one log line that are kept."""
MAX_STEP = 2.0**53
_FLAT_PROGRESS = ("step", "total_steps", "epoch", "eta_seconds")


def number(value: Any) -> float | None:
    """Return a float (nan and inf are legal), or None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def finite(value: Any) -> float | None:
    """Return a finite float or None."""
    result = number(value)
    return result if result is not None and math.isfinite(result) else None


def clean(text: Any, limit: int) -> str:
    """Return text that every database takes: no NUL, no lone surrogate, at most `limit` characters."""
    if not isinstance(text, str):
        text = str(text)
    kept: str = text[:limit].replace("\x00", "\ufffd")
    return kept if kept.isascii() else kept.encode("utf-8", "replace").decode("utf-8")


def to_json(value: Any) -> str:
    """Return JSON without NaN (a non-finite float becomes null) and without NUL or lone surrogates."""
    try:
        data = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError):
        data = orjson.dumps(clean(value, MAX_MESSAGE))
    return data.decode().replace("\\u0000", "\\ufffd")


def nonfinite_name(value: float) -> str:
    """Return `nan`, `inf` or `-inf`, the names used on the wire."""
    if math.isnan(value):
        return "nan"
    return "inf" if value > 0 else "-inf"


def packed(value: float) -> float | str:
    """Return the JSON form inside `metric_line.body` and `job_live.latest`."""
    return value if math.isfinite(value) else nonfinite_name(value)


def unpacked(value: Any) -> float:
    """Return the float that `packed` wrote."""
    return NONFINITE[value] if isinstance(value, str) else float(value)


def step_number(value: Any) -> int | float | None:
    """Return a step as JSON shows it: an integer where it is one."""
    if value is None:
        return None
    return int(value) if float(value).is_integer() else float(value)


@dataclass(frozen=True, slots=True)
class MetricItem:
    """One metric line with every value as a float."""

    step: float
    epoch: float | None
    time: float
    values: dict[str, float]


def metric_item(item: dict[str, Any], fallback_time: float) -> MetricItem | None:
    """Read a metric line; None when it has no step or no value that counts."""
    step = finite(item.get("step"))
    metrics = item.get("metrics")
    if step is None or abs(step) > MAX_STEP or not isinstance(metrics, dict):
        return None
    marked = item.get("nonfinite")
    marks: dict[str, Any] = marked if isinstance(marked, dict) else {}
    values: dict[str, float] = {}
    for name, raw in metrics.items():
        if not isinstance(name, str) or not name:
            continue
        value = number(raw)
        if value is None:
            value = NONFINITE.get(str(marks.get(name)))
        if value is not None:
            values[clean(name, MAX_NAME)] = value
    if not values:
        return None
    return MetricItem(step, finite(item.get("epoch")), item_time(item, fallback_time), values)


def item_time(item: dict[str, Any], fallback: float) -> float:
    """Return the item's own time in seconds, or when its message reached the broker."""
    value = finite(item.get("t"))
    return value if value is not None and 0 <= value < 1e11 else fallback


def progress_body(item: dict[str, Any]) -> dict[str, Any]:
    """Return the progress that REST shows: step, total_steps, epoch, eta_seconds."""
    body: dict[str, Any] = {key: finite(item.get(key)) for key in _FLAT_PROGRESS}
    body["step"] = step_number(body["step"])
    body["total_steps"] = step_number(body["total_steps"])
    return body


def log_row(item: dict[str, Any], fallback_time: float) -> Row:
    """Return the columns of a log line."""
    gap = item.get("gap")
    level = LEVELS.get(str(item.get("level", "INFO")).upper(), LEVELS["INFO"])
    return {
        "type": "log",
        "level": level,
        "time": item_time(item, fallback_time),
        "text": clean(item.get("message", ""), MAX_MESSAGE),
        "body": to_json({"gap": gap}) if isinstance(gap, dict) else None,
    }


def sample_row(item: dict[str, Any], fallback_time: float) -> Row:
    """Return the columns of a sample completion."""
    body = {key: value for key, value in item.items() if key not in ("t", "type")}
    return {
        "type": "sample",
        "step": finite(item.get("step")),
        "value": finite(item.get("reward")),
        "text": clean(item.get("prompt") or "", MAX_MESSAGE),
        "time": item_time(item, fallback_time),
        "body": to_json(body),
    }


def system_row(item: dict[str, Any], fallback_time: float) -> Row:
    """Return the columns of a sample of GPU, CPU and memory."""
    body = {key: value for key, value in item.items() if key not in ("t", "type")}
    return {"type": "system", "time": item_time(item, fallback_time), "body": to_json(body)}


RECORD_COLUMNS = (
    "job_id",
    "seq",
    "type",
    "attempt",
    "step",
    "level",
    "value",
    "time",
    "text",
    "body",
)


def record_row(job_id: int, seq: int, attempt: int | None, columns: Row) -> Row:
    """Return a complete row of `record`; bulk inserts need every column in every row."""
    row: Row = dict.fromkeys(RECORD_COLUMNS)
    row.update(columns)
    row["job_id"], row["seq"], row["attempt"] = job_id, seq, attempt
    return row
