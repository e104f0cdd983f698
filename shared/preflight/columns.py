"""What each algorithm needs of a row, and the check of one row against it (PRODUCT, section 2)."""

import difflib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from shared.preflight.finding import Finding, Place, shown
from shared.preflight.messages import check_messages
from shared.preflight.sources import FIELD

TEXT = "text"
TEXT_OR_NUMBER = "text or number"
MESSAGES = "messages"


@dataclass(frozen=True, slots=True)
class Shape:
    """One accepted set of columns: its name, and each column with the kind of value it holds."""

    name: str
    columns: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The column names in order."""
        return tuple(name for name, _ in self.columns)


_CHAT = Shape("messages", (("messages", MESSAGES),))
_PAIR = Shape("prompt_response", (("prompt", TEXT), ("response", TEXT)))
_PREFERENCE = Shape("preference", (("prompt", TEXT), ("chosen", TEXT), ("rejected", TEXT)))
_PROMPT = Shape("prompt", (("prompt", TEXT),))

_FIXED: dict[str, tuple[Shape, ...]] = {
    "sft": (_PAIR, _CHAT),
    "dpo": (_PREFERENCE,),
    "reward_model": (_PREFERENCE,),
    "ppo": (_PROMPT,),
    "gspo": (_PROMPT,),
}
ALGORITHMS = (*_FIXED, "grpo")

# Names that other tools use for the same thing.
_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": (
        "question",
        "instruction",
        "input",
        "query",
        "problem",
        "user",
        "text",
        "content",
        "问题",
        "提示",
    ),
    "response": (
        "completion",
        "output",
        "answer",
        "target",
        "reply",
        "assistant",
        "回答",
        "回复",
        "答案",
    ),
    "messages": ("conversations", "conversation", "dialog", "dialogue", "chat", "turns", "对话"),
    "chosen": ("accepted", "preferred", "positive", "winner", "better", "response_chosen", "good"),
    "rejected": ("negative", "dispreferred", "loser", "worse", "response_rejected", "bad"),
    "solution": (
        "answer",
        "label",
        "ground_truth",
        "target",
        "gold",
        "result",
        "final_answer",
        "答案",
    ),
}


def shapes(algorithm: str, answer_key: str | None = None) -> tuple[Shape, ...]:
    """The column sets that `algorithm` accepts; `answer_key` names the grpo column with the reference answer.

    Raises ValueError for an algorithm that does not exist.
    """
    if algorithm == "grpo":
        return (
            Shape(
                "prompt_solution", (("prompt", TEXT), (answer_key or "solution", TEXT_OR_NUMBER))
            ),
        )
    if algorithm not in _FIXED:
        raise ValueError(f"unknown algorithm {algorithm!r}; one of {', '.join(ALGORITHMS)}")
    return _FIXED[algorithm]


def choose_shape(accepted: tuple[Shape, ...], present: Iterable[str]) -> Shape:
    """The accepted shape that fits the columns present best; the first one when none stands out."""
    have = set(present)
    return max(
        accepted,
        key=lambda shape: (
            set(shape.names) <= have,
            len(have & set(shape.names)) / len(shape.names),
        ),
    )


def check_header(columns: list[str], shape: Shape, algorithm: str) -> list[Finding]:
    """Missing columns of a file that names its columns once (.csv, .parquet)."""
    return [_missing(name, columns, algorithm, None) for name in shape.names if name not in columns]


def check_row(
    values: dict[str, object], shape: Shape, algorithm: str, place: Place
) -> Iterator[Finding]:
    """Everything wrong with one row; extra columns are allowed."""
    clean = True
    for name, kind in shape.columns:
        if name not in values:
            clean = False
            yield _missing(name, list(values), algorithm, place)
            continue
        for finding in _check_value(values[name], name, kind, place):
            clean = clean and finding.severity == "warning"
            yield finding
    if clean and shape is _PREFERENCE and values["chosen"] == values["rejected"]:
        yield Finding(
            "chosen_equals_rejected",
            FIELD,
            f"{place.en}: chosen and rejected are the same text, so there is nothing to prefer. Change one or drop the row.",
            f"{place.zh}：chosen 与 rejected 完全相同，无法体现偏好。请修改其中之一或删除该条。",
            place.line,
            place.row,
            "rejected",
            shown(values["rejected"]),
        )


def nearest_column(wanted: str, present: Iterable[str]) -> str | None:
    """The column present that most likely means `wanted`, such as "completion" for "response"."""
    names = [name for name in present if isinstance(name, str) and name != wanted]
    lowered = {name.strip().lower(): name for name in reversed(names)}
    for other in (wanted, *_OTHER_NAMES.get(wanted, ())):
        if other in lowered:
            return lowered[other]
    close = difflib.get_close_matches(
        wanted, [name[:80] for name in lowered][:200], n=1, cutoff=0.7
    )
    return lowered.get(close[0]) if close else None


def _missing(name: str, present: list[str], algorithm: str, place: Place | None) -> Finding:
    here = place or Place()
    near = nearest_column(name, present)
    listed = ", ".join(shown(column, 30) for column in present[:8]) or "-"
    if near is not None:
        en, zh = (
            f'Rename "{shown(near, 30)}" to "{name}".',
            f"请把“{shown(near, 30)}”改名为“{name}”。",
        )
    else:
        en, zh = f'Add "{name}".', f"请补上“{name}”。"
    return Finding(
        "missing_column",
        FIELD,
        f'{here.en} has no column "{name}", which {algorithm} needs (there: {listed}). {en}',
        f"{here.zh}缺少 {algorithm} 需要的列“{name}”（现有：{listed}）。{zh}",
        here.line,
        here.row,
        name,
        near,
        name,
    )


def _check_value(value: object, name: str, kind: str, place: Place) -> Iterator[Finding]:
    if value is None:
        yield Finding(
            "null_value",
            FIELD,
            f'{place.en}: "{name}" is null. Write the text, or drop the row.',
            f"{place.zh}：“{name}”为 null。请填写内容或删除该条。",
            place.line,
            place.row,
            name,
            "null",
            kind,
        )
    elif kind == MESSAGES:
        yield from check_messages(value, name, place)
    elif isinstance(value, str):
        if not value.strip():
            yield Finding(
                "empty_text",
                FIELD,
                f'{place.en}: "{name}" is empty. Write the text, or drop the row.',
                f"{place.zh}：“{name}”为空。请填写内容或删除该条。",
                place.line,
                place.row,
                name,
                "",
                kind,
            )
    elif not (kind == TEXT_OR_NUMBER and _is_finite_number(value)):
        yield wrong_type(value, name, kind, place)


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


_KIND_ZH = {TEXT: "文本", TEXT_OR_NUMBER: "文本或数字"}


def wrong_type(value: object, name: str, kind: str, place: Place) -> Finding:
    """The finding for a value that is not of the kind its column holds."""
    kind_zh = _KIND_ZH.get(kind, kind)
    is_a = type(value).__name__
    return Finding(
        "wrong_type",
        FIELD,
        f'{place.en}: "{name}" is {is_a} ({shown(value)}), it must be {kind}.'
        + (' Write it in "quotes".' if isinstance(value, int | float) else ""),
        f"{place.zh}：“{name}”的类型是 {is_a}（{shown(value)}），应为{kind_zh}。"
        + ("请加上引号写成文本。" if isinstance(value, int | float) else ""),
        place.line,
        place.row,
        name,
        shown(value),
        kind,
    )
