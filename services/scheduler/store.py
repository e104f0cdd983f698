"""The scheduler's database: load the cluster, and store a step's decisions with their position in one transaction."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col

from services.scheduler import codec
from services.scheduler.core.decisions import (
    AttemptSaved,
    CheckpointSaved,
    ConfigSaved,
    Decision,
    DesiredCleared,
    DesiredSet,
    HostSaved,
    JobSaved,
    Published,
    RequestHeld,
    RequestReleased,
)
from services.scheduler.core.state import ClusterState, Job, Limits, Moment
from services.scheduler.core.step import adopt, references
from services.scheduler.models import (
    AttemptRow,
    CheckpointRow,
    ConfigRow,
    DesiredRow,
    HeldRow,
    HostRow,
    JobRow,
    OutboxRow,
    PositionRow,
    Table,
)
from shared.events import subjects
from shared.events.job import JOB_EVENTS
from shared.events.requests import JobRequest
from shared.ids import new_message_id

_INSERT_OUTBOX = insert(OutboxRow.__table__)  # type: ignore[attr-defined]
IN_AT_MOST = 500
"""Values in one IN list; SQLite takes 32,766 parameters, a planner likes fewer."""


@dataclass(frozen=True, slots=True)
class Position:
    """A stream was applied up to `last_seq` in its `epoch`."""

    stream: str
    epoch: str
    last_seq: int


def load(session: Session, now: Moment, limits: Limits) -> ClusterState:
    """Return the cluster: every host, every unfinished job, and the jobs that those refer to."""
    ids = list(session.scalars(select(col(JobRow.id)).where(~col(JobRow.ended))))
    jobs = {job.id: job for job in load_jobs(session, ids)}
    wanted = {ref for job in jobs.values() for ref in references(job)} - jobs.keys()
    jobs |= {job.id: job for job in load_jobs(session, sorted(wanted))}
    hosts = {row.id: codec.host_of(row, now) for row in session.scalars(select(HostRow))}
    for row in session.scalars(select(DesiredRow).where(col(DesiredRow.entry).is_not(None))):
        entry = json.loads(row.entry or "{}")
        if entry.get("desired") == "stop" and row.host in hosts:
            owner = jobs.get(row.job)
            run = owner.run if owner else None
            if run is None or (run.host, run.attempt) != (row.host, entry["attempt"]):
                host = hosts[row.host]
                stops = {**host.stops, row.job: int(entry["attempt"])}
                hosts[row.host] = replace(host, stops=stops)
    held: dict[str, list[JobRequest]] = defaultdict(list)
    for kept in session.scalars(select(HeldRow).order_by(col(HeldRow.job), col(HeldRow.req_n))):
        held[kept.job].append(codec.REQUEST.validate_json(kept.request))
    last = session.scalar(select(func.max(JobRow.order_n))) or 0
    state = ClusterState(
        hosts=hosts,
        held={job: tuple(requests) for job, requests in held.items()},
        next_order=last + 1,
        limits=limits,
    )
    return adopt(state, sorted(jobs.values(), key=lambda job: job.order), now)


def load_jobs(session: Session, ids: Sequence[str]) -> list[Job]:
    """Return those of `ids` that exist."""
    found: list[Job] = []
    for start in range(0, len(ids), IN_AT_MOST):
        some = ids[start : start + IN_AT_MOST]
        # Columns, not objects that the session follows: ten thousand of those take as long as all the rest.
        columns = select(col(JobRow.id), col(JobRow.state), col(JobRow.data))
        rows = session.execute(columns.where(col(JobRow.id).in_(some))).all()
        checkpoints: dict[str, list[CheckpointRow]] = defaultdict(list)
        query = select(CheckpointRow).where(
            col(CheckpointRow.job).in_(some), ~col(CheckpointRow.deleted)
        )
        for one in session.scalars(query):
            checkpoints[one.job].append(one)
        found += [codec.job_of(state, data, checkpoints[id_]) for id_, state, data in rows]
    return found


def apply(
    session: Session,
    decisions: Iterable[Decision],
    position: Position | None,
    traces: Mapping[str, str] | None = None,
) -> None:
    """Store everything that a step decided; the caller's transaction is fenced by `leader.fence`."""
    kinds: dict[type[Any], list[Any]] = defaultdict(list)
    for decision in decisions:
        kinds[type(decision)].append(decision)
    _upsert(session, JobRow, _last([codec.job_row(d.job) for d in kinds[JobSaved]], 1))
    _upsert(
        session,
        ConfigRow,
        [
            {"job": d.job, "config": json.dumps(dict(d.config), ensure_ascii=False)}
            for d in kinds[ConfigSaved]
        ],
    )
    _upsert(session, AttemptRow, _last([_attempt_row(d) for d in kinds[AttemptSaved]], 2))
    rows = [codec.checkpoint_row(d.job, d.checkpoint) for d in kinds[CheckpointSaved]]
    _upsert(session, CheckpointRow, _last(rows, 3))
    _upsert(session, HostRow, _last([codec.host_row(d.host) for d in kinds[HostSaved]], 1))
    _requests(session, kinds[RequestHeld], kinds[RequestReleased])
    outbox = [_outbox_row(d, traces or {}) for d in kinds[Published]]
    if outbox:
        session.connection().execute(_INSERT_OUTBOX, outbox)
    wanted = [d for d in decisions if isinstance(d, DesiredSet | DesiredCleared)]
    if wanted:
        _desired(session, wanted)
    if position is not None:
        save_position(session, position)


def save_position(session: Session, position: Position) -> None:
    """Store how far a stream was applied."""
    row = {"name": position.stream, "epoch": position.epoch, "last_seq": position.last_seq}
    _upsert(session, PositionRow, [row])


def position(session: Session, stream: str) -> Position:
    """Return how far a stream was applied; an empty epoch when it never was."""
    row = session.get(PositionRow, stream)
    return Position(stream, row.epoch, row.last_seq) if row else Position(stream, "", 0)


def save_seen(session: Session, seen: Mapping[str, float]) -> None:
    """Store when hosts were last heard of (Unix seconds), so that a day of silence survives restarts."""
    for host, moment in seen.items():
        row = session.get(HostRow, host)
        if row is not None:
            row.last_seen = moment
            session.add(row)


def _attempt_row(decision: AttemptSaved) -> dict[str, Any]:
    return {
        "job": decision.job,
        "number": decision.attempt,
        "host": decision.host,
        "gpus": list(decision.gpus),
        "status": decision.status,
        "reason": decision.reason,
        "at": decision.at.timestamp(),
    }


def _outbox_row(decision: Published, traces: Mapping[str, str]) -> dict[str, Any]:
    state = decision.state
    event = JOB_EVENTS[decision.change](at=decision.at, state=state)
    return {
        "job": state.job,
        "job_n": state.job_n,
        "subject": subjects.job(state.job),
        "message_id": new_message_id(),
        "event": event.model_dump_json(),
        "traceparent": traces.get(state.job),
        "at": decision.at.timestamp(),
        "published": None,
    }


def _requests(session: Session, held: list[RequestHeld], released: list[RequestReleased]) -> None:
    rows = [
        {"job": d.request.job, "req_n": d.request.req_n, "request": d.request.model_dump_json()}
        for d in held
    ]
    _upsert(session, HeldRow, rows)
    for one in released:
        session.execute(
            delete(HeldRow).where(col(HeldRow.job) == one.job, col(HeldRow.req_n) == one.req_n)
        )


def _desired(session: Session, wanted: Sequence[DesiredSet | DesiredCleared]) -> None:
    """Store the last word about each (host, job), to be written after every event decided so far."""
    newest = {(d.host, d.job): d for d in wanted}
    outbox_id = session.scalar(select(func.max(OutboxRow.id))) or 0
    rows = [
        {
            "host": host,
            "job": job,
            "version": 1,
            "outbox_id": outbox_id,
            "entry": _entry(session, d) if isinstance(d, DesiredSet) else None,
            "written_version": 0,
            "written_epoch": "",
        }
        for (host, job), d in newest.items()
    ]
    table = DesiredRow.__table__  # type: ignore[attr-defined]
    _upsert(
        session,
        DesiredRow,
        rows,
        {
            "version": table.c.version + 1,
            "written_version": table.c.written_version,
            "written_epoch": table.c.written_epoch,
        },
    )


def _entry(session: Session, decision: DesiredSet) -> str:
    config: dict[str, Any] = {}
    if decision.desired == "run":
        row = session.get(ConfigRow, decision.job)
        config = json.loads(row.config) if row else {}
    return codec.desired_entry(decision, config).model_dump_json()


def _last(rows: list[dict[str, Any]], keys: int) -> list[dict[str, Any]]:
    """Return the last row of each key: one statement may touch a row only once."""
    return list({tuple(list(row.values())[:keys]): row for row in rows}.values())


def _upsert(
    session: Session,
    model: type[Table],
    rows: list[dict[str, Any]],
    special: Mapping[str, Any] | None = None,
) -> None:
    if not rows:
        return
    dialect = session.get_bind().dialect.name
    if special is None:
        statement = _upserting(model, dialect)
    else:
        statement = _upsert_statement(model, dialect, special)
    # Past the session, which has nothing to follow here and takes as long as the database.
    session.connection().execute(statement, rows)


@cache
def _upserting(model: type[Table], dialect: str) -> Any:
    return _upsert_statement(model, dialect, {})


def _upsert_statement(model: type[Table], dialect: str, special: Mapping[str, Any]) -> Any:
    table = model.__table__  # type: ignore[attr-defined]
    keys = [c.name for c in table.primary_key]
    build = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = build(table)
    changes = {c.name: statement.excluded[c.name] for c in table.c if c.name not in keys}
    return statement.on_conflict_do_update(index_elements=keys, set_=changes | dict(special))
