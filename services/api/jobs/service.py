"""Reading jobs, and requests about jobs that exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session

from services.api.db.tables import JobEventRow, JobRow
from services.api.deps import ApiServices
from services.api.jobs.actions import Action, decide
from services.api.jobs.cursor import read_cursor, write_cursor
from services.api.jobs.forget import drop_secrets
from services.api.jobs.repository import (
    Page,
    Selection,
    find_job,
    host_labels,
    list_events,
    list_jobs,
    pending_actions,
    unfinished_dependents,
)
from services.api.jobs.schemas import JobEventRead, JobPage, JobPatch, JobRead
from services.api.jobs.view import event_read, job_now, job_read
from services.api.outbox import add_request
from services.api.telemetry.latest import latest
from shared.errors import conflict
from shared.events.requests import (
    JobCancelRequested,
    JobDeclareLostRequested,
    JobDeleteRequested,
    JobPauseRequested,
    JobPriorityRequested,
    JobResumeRequested,
    JobRetryRequested,
    RequestBase,
)
from shared.jobs.reasons import Lang
from shared.jobs.status import JobStatus

EVENTS: dict[Action, type[RequestBase]] = {
    Action.CANCEL: JobCancelRequested,
    Action.PAUSE: JobPauseRequested,
    Action.RESUME: JobResumeRequested,
    Action.RETRY: JobRetryRequested,
    Action.DECLARE_LOST: JobDeclareLostRequested,
    Action.DELETE: JobDeleteRequested,
}
CURSOR_PURPOSE = "job list cursor"


@dataclass(frozen=True, slots=True)
class Seen:
    """Rows with what is needed to show them."""

    rows: Sequence[JobRow]
    labels: dict[str, str]
    pending: dict[str, set[Action]]


def see(session: Session, rows: Sequence[JobRow]) -> Seen:
    """Collect what showing `rows` needs, in their session."""
    return Seen(rows, host_labels(session), pending_actions(session, rows))


async def shown(services: ApiServices, seen: Seen, lang: Lang) -> list[JobRead]:
    """Return the rows as REST shows them, with their newest metrics."""
    found = await latest(services.telemetry, [row.uuid for row in seen.rows])
    return [
        job_read(
            row,
            lang,
            labels=seen.labels,
            latest=found.get(row.uuid),
            pending=seen.pending.get(row.uuid, set()),
        )
        for row in seen.rows
    ]


async def read_job(services: ApiServices, key: str, lang: Lang) -> JobRead:
    """Return one job. Raises TrainyardError 404."""
    seen = await services.main.read(lambda session: see(session, [find_job(session, key)]))
    return (await shown(services, seen, lang))[0]


async def read_page(
    services: ApiServices, selection: Selection, after: str | None, lang: Lang
) -> JobPage:
    """Return one page of jobs. Raises TrainyardError 422 for a filter or cursor that cannot be read."""
    key = services.keyring.derive(CURSOR_PURPOSE)
    cursor = read_cursor(after, key, selection.order, selection.digest) if after else None

    def work(session: Session) -> tuple[Page, Seen]:
        page = list_jobs(session, selection, cursor)
        return page, see(session, page.rows)

    page, seen = await services.main.read(work)
    following = write_cursor(page.next, key) if page.next else None
    return JobPage(items=await shown(services, seen, lang), next=following, counts=page.counts)


async def read_events(
    services: ApiServices, key: str, after: int, limit: int, lang: Lang
) -> list[JobEventRead]:
    """Return a job's history. Raises TrainyardError 404."""

    def work(session: Session) -> tuple[Sequence[JobEventRow], dict[str, str]]:
        row = find_job(session, key)
        return list_events(session, row.uuid, after, limit), host_labels(session)

    rows, labels = await services.main.read(work)
    return [event_read(row, lang, labels) for row in rows]


async def act(services: ApiServices, key: str, action: Action, lang: Lang) -> JobRead:
    """Write the request, unless the same one is on its way. Raises TrainyardError 404 or 409."""
    now = services.clock.now()
    seen = await services.main.write(lambda session: request(session, key, action, now))
    services.wake_outbox()
    return (await shown(services, seen, lang))[0]


def request(session: Session, key: str, action: Action, now: datetime) -> Seen:
    """Decide and write in one transaction, so that two users cannot both win."""
    row = find_job(session, key, lock=True)
    pending = pending_actions(session, [row]).get(row.uuid, set())
    if decide(action, job_now(row, pending)):
        row.req_n += 1
        add_request(session, EVENTS[action](job=row.uuid, req_n=row.req_n, at=now))
        session.flush()
    return see(session, [row])


async def delete(services: ApiServices, key: str) -> None:
    """Leave a tombstone at once; the scheduler has the files collected. Raises TrainyardError 404 or 409."""
    now = services.clock.now()

    def work(session: Session) -> None:
        row = find_job(session, key, lock=True)
        dependents = unfinished_dependents(session, row.uuid)
        if dependents:
            names = ", ".join(dependents)
            raise conflict(
                "has_dependents",
                f"Unfinished jobs need this one: {names}. Cancel them first.",
                f"以下未结束的任务依赖它：{names}。请先取消这些任务。",
            )
        request(session, key, Action.DELETE, now)
        row.deleted_at = now
        drop_secrets(session, row.uuid)
        session.flush()

    await services.main.write(work)
    services.wake_outbox()


async def patch(services: ApiServices, key: str, change: JobPatch, lang: Lang) -> JobRead:
    """Change what is named in the body. Raises TrainyardError 404, or 409 for the priority of a job that does not wait."""
    now = services.clock.now()
    given = change.model_fields_set

    def work(session: Session) -> Seen:
        row = find_job(session, key, lock=True)
        if "priority" in given and change.priority is not None:
            _prioritise(session, row, change.priority, now)
        if "name" in given and change.name is not None:
            row.name = change.name
        if "description" in given:
            row.description = change.description
        if "tags" in given:
            row.tags = list(change.tags or ())
        shown_in_form = {"name": row.name, "description": row.description, "tags": row.tags}
        row.config = {**row.config, **{k: v for k, v in shown_in_form.items() if k in given}}
        session.flush()
        return see(session, [row])

    seen = await services.main.write(work)
    services.wake_outbox()
    return (await shown(services, seen, lang))[0]


def _prioritise(session: Session, row: JobRow, priority: int, now: datetime) -> None:
    if row.status not in {JobStatus.PENDING.value, JobStatus.PAUSED.value}:
        raise conflict(
            "not_waiting",
            f"priority orders waiting jobs, and this one is {row.status}.",
            f"priority 只影响等待中的任务，而该任务处于 {row.status}。",
        )
    row.priority = priority
    row.config = {**row.config, "priority": priority}
    row.req_n += 1
    add_request(
        session,
        JobPriorityRequested(job=row.uuid, req_n=row.req_n, at=now, priority=priority),
    )
