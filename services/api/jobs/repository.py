"""Every SQL statement about jobs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, func, literal, or_, select, tuple_, union_all
from sqlmodel import Session, col

from services.api.db.tables import HostRow, JobDependencyRow, JobEventRow, JobRow, RequestRow
from services.api.db.types import UtcTime
from services.api.jobs.actions import Action
from services.api.jobs.cursor import Cursor
from services.api.jobs.filter_grammar import parse_filter
from services.api.jobs.where import contains, has_tag, where
from shared.clock import from_iso
from shared.errors import TrainyardError
from shared.jobs.status import TERMINAL, JobStatus

_UUID_PART = re.compile(r"[0-9a-fA-F-]+")
_NEVER = datetime(1, 1, 1, tzinfo=UTC)
SORTS = ("created_at", "name", "status", "priority", "started_at", "finished_at", "algorithm")
_TIMES = frozenset({"created_at", "started_at", "finished_at"})
_ACTIONS = {f"request.job.{action.value}.v1": action for action in Action}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which jobs a list shows, in which order."""

    status: str | None = None
    algorithm: str | None = None
    q: str | None = None
    filter: str | None = None
    sort: str = "created_at"
    descending: bool = True
    limit: int = 50

    @property
    def order(self) -> str:
        """Return the `sort` parameter."""
        return ("-" if self.descending else "") + self.sort

    @property
    def digest(self) -> str:
        """Return what ties a cursor to this selection."""
        parts = json.dumps([self.status, self.algorithm, self.q, self.filter])
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of one page, where the next begins, and counts by status."""

    rows: list[JobRow]
    next: Cursor | None
    counts: dict[str, int]


def job_missing(key: str, *, deleted: bool = False) -> TrainyardError:
    """Return the 404 for a job; one that was deleted says so."""
    shown = key[:64].encode("ascii", "backslashreplace").decode()
    if deleted:
        return TrainyardError(
            "job_deleted",
            404,
            "Deleted",
            "已删除",
            f"Job {shown} was deleted; its history and files are gone.",
            f"任务 {shown} 已被删除，其历史和文件已清除。",
        )
    return TrainyardError(
        "job_not_found",
        404,
        "Not found",
        "未找到",
        f"There is no job {shown!r}. GET /api/v1/jobs/ lists them.",
        f"不存在任务 {shown!r}，可通过 GET /api/v1/jobs/ 查看列表。",
    )


def find_job(session: Session, key: str, *, lock: bool = False) -> JobRow:
    """Return a job that is not deleted. Raises TrainyardError 404 `job_not_found` or `job_deleted`."""
    try:
        uuid = str(UUID(key)) if len(key) <= 45 else ""
    except ValueError:
        uuid = ""
    row = session.get(JobRow, uuid, with_for_update=lock or None) if uuid else None
    if row is None:
        raise job_missing(key)
    if row.deleted_at is not None:
        raise job_missing(key, deleted=True)
    return row


def pending_actions(session: Session, rows: Iterable[JobRow]) -> dict[str, set[Action]]:
    """Return, by job, the requests that the scheduler has not answered."""
    waiting = {f"job:{row.uuid}": row for row in rows if row.answered_n < row.req_n}
    if not waiting:
        return {}
    statement = select(col(RequestRow.key), col(RequestRow.req_n), col(RequestRow.type)).where(
        col(RequestRow.key).in_(waiting)
    )
    found: dict[str, set[Action]] = {}
    for key, req_n, type_ in session.execute(statement):
        row = waiting[key]
        if req_n > row.answered_n and type_ in _ACTIONS:
            found.setdefault(row.uuid, set()).add(_ACTIONS[type_])
    return found


def host_labels(session: Session) -> dict[str, str]:
    """Return the names of hosts by id."""
    rows = session.execute(select(col(HostRow.id), col(HostRow.label)))
    return {row[0]: row[1] for row in rows}


def list_jobs(session: Session, selection: Selection, after: Cursor | None) -> Page:
    """Return one page. Raises TrainyardError 422 for a filter that cannot be read."""
    common = _conditions(selection, session.get_bind().dialect.name)
    if selection.q or selection.filter:
        counts, uuids = _searched(session, selection, common, after)
    else:
        counts, uuids = _count(session, common), _page(session, selection, common, after)
    more = len(uuids) > selection.limit
    rows = _rows(session, uuids[: selection.limit])
    cursor = _cursor_of(rows[-1], selection) if more else None
    return Page(rows, cursor, {status.value: 0 for status in JobStatus} | counts)


def _count(session: Session, common: list[ColumnElement[bool]]) -> dict[str, int]:
    statement = select(col(JobRow.status), func.count()).where(*common).group_by(col(JobRow.status))
    return {status: int(n) for status, n in session.execute(statement)}


def _page(
    session: Session,
    selection: Selection,
    common: list[ColumnElement[bool]],
    after: Cursor | None,
) -> list[str]:
    """Return which jobs come next, from an index alone; a row with its configuration is too large to be sorted."""
    key, uuid = _sort_key(selection.sort), col(JobRow.uuid)
    statement = (
        select(uuid)
        .where(*common, *_narrowed(selection, after, key, uuid, col(JobRow.status)))
        .order_by(*_order(selection, key, uuid))
        .limit(selection.limit + 1)
    )
    return list(session.execute(statement).scalars())


def _searched(
    session: Session,
    selection: Selection,
    common: list[ColumnElement[bool]],
    after: Cursor | None,
) -> tuple[dict[str, int], list[str]]:
    """Return counts and page of a search, for which every row is read: once for both."""
    matched = (
        select(col(JobRow.uuid), col(JobRow.status), _sort_key(selection.sort).label("key"))
        .where(*common)
        .cte("matched")
        .prefix_with("MATERIALIZED")
    )
    m = matched.c
    order = _order(selection, m.key, m.uuid)
    page = (
        select(m.uuid, m.status, func.row_number().over(order_by=order).label("n"))
        .where(*_narrowed(selection, after, m.key, m.uuid, m.status))
        .order_by(*order)
        .limit(selection.limit + 1)
        .subquery()
    )
    counted = select(literal(None).label("uuid"), m.status, func.count()).group_by(m.status)
    counts: dict[str, int] = {}
    found: list[tuple[int, str]] = []
    for uuid, status, n in session.execute(union_all(counted, select(page))):
        if uuid is None:
            counts[status] = int(n)
        else:
            found.append((n, uuid))
    return counts, [uuid for _, uuid in sorted(found)]


def _narrowed(
    selection: Selection, after: Cursor | None, key: Any, uuid: Any, status: Any
) -> list[ColumnElement[bool]]:
    """Return what a page asks for beyond what is counted: its statuses, and where it begins."""
    found: list[ColumnElement[bool]] = []
    if selection.status:
        found.append(status.in_(selection.status.split(",")))
    if after is not None:
        found.append(_beyond(key, uuid, after, selection))
    return found


def _order(selection: Selection, key: Any, uuid: Any) -> tuple[Any, Any]:
    return (key.desc(), uuid.desc()) if selection.descending else (key.asc(), uuid.asc())


def unfinished_dependents(session: Session, uuid: str) -> list[str]:
    """Return the jobs that wait for this one and have not ended."""
    statement = (
        select(col(JobRow.uuid))
        .join(JobDependencyRow, col(JobDependencyRow.job) == col(JobRow.uuid))
        .where(
            col(JobDependencyRow.needs) == uuid,
            col(JobRow.deleted_at).is_(None),
            col(JobRow.status).not_in([s.value for s in TERMINAL]),
        )
        .order_by(col(JobRow.uuid))
        .limit(20)
    )
    return list(session.execute(statement).scalars())


def list_events(session: Session, uuid: str, after: int, limit: int) -> Sequence[JobEventRow]:
    """Return a job's history behind number `after`."""
    statement = (
        select(JobEventRow)
        .where(col(JobEventRow.job) == uuid, col(JobEventRow.job_n) > after)
        .order_by(col(JobEventRow.job_n))
        .limit(limit)
    )
    return list(session.execute(statement).scalars())


def count_by_status(session: Session) -> dict[str, int]:
    """Return how many jobs there are in each status."""
    statement = (
        select(col(JobRow.status), func.count())
        .where(col(JobRow.deleted_at).is_(None))
        .group_by(col(JobRow.status))
    )
    return {status: int(n) for status, n in session.execute(statement)}


def _rows(session: Session, uuids: list[str]) -> list[JobRow]:
    found = session.execute(select(JobRow).where(col(JobRow.uuid).in_(uuids))).scalars()
    by_uuid = {row.uuid: row for row in found}
    return [by_uuid[uuid] for uuid in uuids if uuid in by_uuid]


def _conditions(selection: Selection, dialect: str) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [col(JobRow.deleted_at).is_(None)]
    if selection.algorithm:
        found.append(col(JobRow.algorithm).in_(selection.algorithm.split(",")))
    if selection.q:
        texts: list[Any] = [JobRow.name, JobRow.description]
        if _UUID_PART.fullmatch(selection.q):
            texts.append(JobRow.uuid)
        found.append(or_(*(contains(t, selection.q) for t in texts), has_tag(selection.q, dialect)))
    if selection.filter:
        found.append(where(parse_filter(selection.filter), dialect))
    return found


def _sort_key(name: str) -> Any:
    column = getattr(JobRow, name)
    if name in {"started_at", "finished_at"}:
        # NULL has no place in a keyset comparison: jobs that have not come so far stand at one end.
        return func.coalesce(column, _NEVER, type_=UtcTime())
    return column


def _beyond(key: Any, uuid: Any, after: Cursor, selection: Selection) -> ColumnElement[bool]:
    value: Any = after.value
    if selection.sort in _TIMES:
        value = from_iso(str(value))
    # Compared as one value, for which the index is entered once; OR would read it all.
    here = tuple_(key, uuid)
    there = tuple_(literal(value, key.type), literal(after.uuid))
    found: ColumnElement[bool] = here < there if selection.descending else here > there
    return found


def _cursor_of(row: JobRow, selection: Selection) -> Cursor:
    value: Any = getattr(row, selection.sort)
    if selection.sort in _TIMES:
        moment: datetime = value or _NEVER
        value = moment.astimezone(UTC).isoformat()
    return Cursor(selection.order, value, row.uuid, selection.digest)
