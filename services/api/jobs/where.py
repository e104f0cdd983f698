"""A parsed filter as a SQL condition on jobs, the same on SQLite and PostgreSQL; values are always bound."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal

from sqlalchemy import ColumnElement, Text, and_, cast, func, literal, not_, or_, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import col

from services.api.db.tables import HostRow, JobRow
from services.api.jobs.filter_grammar import Either, Every, Node, Not, Restriction, filter_problem
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus
from shared.specs import EVERY_ALGORITHM, SPECS
from shared.specs.parameters import described

Kind = Literal["number", "text", "boolean"]
FIELDS = (
    "status", "reason", "algorithm", "name", "host", "attempt", "priority", "created_at", "tags",
)  # fmt: skip
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_KINDS: dict[str, Kind] = {"integer": "number", "number": "number", "boolean": "boolean"}


def where(tree: Node, dialect: str) -> ColumnElement[bool]:
    """Return the condition. Raises TrainyardError 422 `filter_invalid` for an unknown field or a value that does not fit."""
    if isinstance(tree, Not):
        return not_(where(tree.part, dialect))
    if isinstance(tree, Every):
        return and_(*(where(part, dialect) for part in tree.parts))
    if isinstance(tree, Either):
        return or_(*(where(part, dialect) for part in tree.parts))
    return _restriction(tree, dialect)


def contains(column: Any, text: str) -> ColumnElement[bool]:
    """Match a text anywhere, without regard to case; `%` and `_` stand for themselves."""
    return func.lower(column).like(f"%{_escaped(text.lower())}%", escape="\\")


def has_tag(tag: str, dialect: str) -> ColumnElement[bool]:
    """Match jobs that bear exactly this tag."""
    if dialect == "postgresql":
        return cast(JobRow.tags, JSONB).contains([tag])
    each = func.json_each(JobRow.tags).table_valued("value")
    exact = select(literal(1)).select_from(each).where(each.c.value == tag).exists()
    # Looked for in the stored text first: most rows need not be parsed then.
    return and_(func.instr(cast(JobRow.tags, Text), json.dumps(tag)) > 0, exact)


@cache
def parameter_kinds() -> dict[str, Kind]:
    """Return how each job parameter is compared; a list or an object cannot be."""
    kinds: dict[str, Kind] = {}
    for model in SPECS.values():
        for name, parameter in described(model).items():
            if parameter.kind in {"list", "object", "components"} or parameter.secret:
                continue
            kind = _KINDS.get(parameter.kind, "text")
            kinds[name] = kind if kinds.get(name, kind) == kind else "text"
    return kinds


def _restriction(r: Restriction, dialect: str) -> ColumnElement[bool]:
    if r.field.startswith("config."):
        return _parameter(r, r.field.removeprefix("config."))
    if r.field == "tags":
        return _tags(r, dialect)
    build = _BUILD.get(r.field)
    if build is not None:
        return build(r)
    near = get_close_matches(r.field, [*FIELDS, *(f"config.{n}" for n in parameter_kinds())], n=1)
    raise filter_problem(
        f"names an unknown field {_shown(r.field)}" + "".join(f". Did you mean {n}" for n in near),
        f"使用了未知字段 {_shown(r.field)}" + "".join(f"，是否应为 {n}" for n in near),
        [*FIELDS, "config.<parameter>"],
    )


def _tags(r: Restriction, dialect: str) -> ColumnElement[bool]:
    if r.operator not in {"=", ":", "!="}:
        raise _operator(r, "= != :")
    found = has_tag(r.value, dialect)
    return not_(found) if r.operator == "!=" else found


def _parameter(r: Restriction, name: str) -> ColumnElement[bool]:
    kind = parameter_kinds().get(name)
    if kind is None:
        near = get_close_matches(name, list(parameter_kinds()), n=1)
        raise filter_problem(
            f"names an unknown parameter config.{_shown(name)}"
            + "".join(f". Did you mean config.{n}" for n in near),
            f"使用了未知参数 config.{_shown(name)}"
            + "".join(f"，是否应为 config.{n}" for n in near),
        )
    value = col(JobRow.config)[name]
    if r.value == "null" and not r.quoted and r.operator in {"=", "!="}:
        missing: ColumnElement[bool] = value.as_string().is_(None)
        return missing if r.operator == "=" else not_(missing)
    if kind == "number":
        return _compare(r, value.as_float(), _number(r))
    if kind == "boolean":
        if r.value not in {"true", "false"} or r.operator not in {"=", "!="}:
            raise _value(r, "true or false", "true 或 false")
        return _COMPARE[r.operator](value.as_boolean(), r.value == "true")  # type: ignore[no-any-return]
    return _text(r, value.as_string())


def _choice(r: Restriction, column: Any, allowed: list[str], value: str) -> ColumnElement[bool]:
    if r.operator not in {"=", "!=", ":"}:
        raise _operator(r, "= !=")
    if value not in allowed:
        raise _value(r, " ".join(allowed), "、".join(allowed))
    return column != value if r.operator == "!=" else column == value  # type: ignore[no-any-return]


def _reason(r: Restriction) -> ColumnElement[bool]:
    """Compare the reason as the scheduler gave it; a job without one matches `null` and every other `!=`."""
    column = col(JobRow.reason)
    if r.value == "null" and not r.quoted and r.operator in {"=", "!="}:
        return column.is_(None) if r.operator == "=" else column.is_not(None)
    # Without a reason a comparison would be neither true nor false, and NOT would leave the job out.
    known = func.coalesce(column, "")
    return _choice(r, known, [reason.value for reason in Reason], r.value.lower())


def _text(r: Restriction, column: Any) -> ColumnElement[bool]:
    if r.operator == ":":
        return contains(column, r.value)
    if "*" in r.value and r.operator in {"=", "!="}:
        pattern = "%".join(_escaped(part) for part in r.value.split("*"))
        found: ColumnElement[bool] = column.like(pattern, escape="\\")
        return not_(found) if r.operator == "!=" else found
    return _compare(r, column, r.value)


def _host(r: Restriction) -> ColumnElement[bool]:
    if r.operator not in {"=", "!=", ":"}:
        raise _operator(r, "= !=")
    labelled = select(col(HostRow.id)).where(col(HostRow.label) == r.value)
    found = or_(col(JobRow.host) == r.value, col(JobRow.host).in_(labelled))
    return not_(func.coalesce(found, False)) if r.operator == "!=" else found


def _compare(r: Restriction, column: Any, value: Any) -> ColumnElement[bool]:
    if r.operator not in _COMPARE:
        raise _operator(r, "= != < <= > >=")
    return _COMPARE[r.operator](column, value)  # type: ignore[no-any-return]


def _number(r: Restriction) -> float:
    try:
        value = float(r.value)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > 1e15:
        raise _value(r, "a number", "数字")
    return value


def _time(r: Restriction) -> datetime:
    try:
        value = datetime.fromisoformat(r.value)
    except ValueError:
        raise _value(
            r, "a time such as 2026-11-22T03:00:00Z", "时间，例如 2026-11-22T03:00:00Z"
        ) from None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _shown(text: str) -> str:
    return text[:60].encode("unicode_escape").decode() if not text.isprintable() else text[:60]


def _operator(r: Restriction, allowed: str) -> Exception:
    return filter_problem(
        f"compares {_shown(r.field)} by {r.operator}; it takes {allowed}",
        f"中 {_shown(r.field)} 不支持 {r.operator}，可用 {allowed}",
        allowed,
    )


def _value(r: Restriction, en: str, zh: str) -> Exception:
    return filter_problem(
        f"gives {_shown(r.field)} the value {_shown(r.value)}; it must be {en}",
        f"中 {_shown(r.field)} 的值 {_shown(r.value)} 无效，应为 {zh}",
        en,
    )


_BUILD: dict[str, Callable[[Restriction], ColumnElement[bool]]] = {
    "status": lambda r: _choice(r, JobRow.status, [s.value for s in JobStatus], r.value.upper()),
    "reason": _reason,
    "algorithm": lambda r: _choice(r, JobRow.algorithm, list(EVERY_ALGORITHM), r.value),
    "name": lambda r: _text(r, JobRow.name),
    "host": _host,
    "attempt": lambda r: _compare(r, JobRow.attempt, _number(r)),
    "priority": lambda r: _compare(r, JobRow.priority, _number(r)),
    "created_at": lambda r: _compare(r, JobRow.created_at, _time(r)),
}
