"""The query parameters of the job list."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated

from fastapi import Depends, Query

from services.api.jobs.repository import SORTS, Selection
from shared.errors import FieldProblem, invalid
from shared.jobs.status import JobStatus
from shared.specs import EVERY_ALGORITHM


async def selection(
    status: Annotated[
        str | None, Query(max_length=200, description="One status or several, comma separated")
    ] = None,
    algorithm: Annotated[
        str | None, Query(max_length=200, description="One algorithm or several, comma separated")
    ] = None,
    q: Annotated[
        str | None,
        Query(max_length=200, description="Text in name, description or uuid, or a whole tag"),
    ] = None,
    filter_: Annotated[
        str | None,
        Query(
            alias="filter",
            description="A subset of AIP-160 over status, reason, algorithm, name, host, attempt, priority, created_at, tags and "
            "config.<parameter>: `status=RUNNING AND config.learning_rate>1e-5`. OR binds tighter than AND.",
        ),
    ] = None,
    sort: Annotated[
        str,
        Query(
            max_length=40,
            description="A field; `-` before it: descending",
            json_schema_extra={"enum": [sign + name for name in SORTS for sign in ("", "-")]},
        ),
    ] = "-created_at",
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Selection:
    """Return what the list shows; a coroutine, since the framework sends a plain function to a thread. Raises TrainyardError 422 naming the parameter."""
    name = sort.removeprefix("-")
    if name not in SORTS:
        raise invalid([_not_allowed("sort", sort, SORTS)])
    if status is not None:
        status = _choices("status", status.upper(), [s.value for s in JobStatus])
    if algorithm is not None:
        algorithm = _choices("algorithm", algorithm, list(EVERY_ALGORITHM))
    return Selection(
        status, algorithm, q or None, filter_ or None, name, sort.startswith("-"), limit
    )


Selected = Annotated[Selection, Depends(selection)]


def _choices(field: str, text: str, allowed: list[str]) -> str | None:
    given = [part.strip() for part in text.split(",") if part.strip()]
    wrong = [part for part in given if part not in allowed]
    if wrong:
        raise invalid([_not_allowed(field, wrong[0], allowed)])
    return ",".join(given) or None


def _not_allowed(field: str, value: str, allowed: list[str] | tuple[str, ...]) -> FieldProblem:
    near = get_close_matches(value.removeprefix("-"), allowed, n=1)
    shown = value[:60].encode("unicode_escape").decode() if not value.isprintable() else value[:60]
    return FieldProblem(
        field,
        shown,
        f"{field} is {shown!r}; it must be one of {', '.join(allowed)}."
        + "".join(f" Did you mean {n}?" for n in near),
        f"{field} 的值为 {shown!r}，应为以下之一：{', '.join(allowed)}。"
        + "".join(f"是否应为 {n}？" for n in near),
        list(allowed),
        "not_allowed",
    )
