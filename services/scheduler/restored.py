"""The shell of `core.heal`: after a restore, read what the streams hold and store what the database lacks, before leading.

The broker's store may be gone too; then there is nothing to read, and what hosts report is all that is known beyond
the backup.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from sqlalchemy import delete, insert, select
from sqlmodel import Session, col

from services.scheduler import leader, store
from services.scheduler.core import heal as core
from services.scheduler.core.decisions import Counted
from services.scheduler.core.heal import Evidence, Fact, Healed, Key
from services.scheduler.core.inputs import RequestArrived, mentioned
from services.scheduler.core.state import ClusterState, Limits, Moment
from services.scheduler.core.step import adopt, references
from services.scheduler.leader import Leadership
from services.scheduler.models import DesiredRow
from services.scheduler.store import Position
from shared.bus import Bus, BusError, BusMessage
from shared.db import Database
from shared.events import EventMalformed, UnknownEvent, decode
from shared.events.base import EventBase
from shared.events.calls import ControlEntry
from shared.events.job import HostUpdated, JobAssigned, JobEventBase
from shared.events.requests import JobRequest, RequestBase
from shared.events.run import RunCheckpoint
from shared.events.subjects import RunSubject
from shared.jobs.lifecycle import JobState
from shared.log import logger
from shared.restored import PENDING, RESTORED

PAGE = 256
PAGE_SECONDS = 10.0
log = logger("scheduler.restored")


@dataclass
class _Found:
    """Evidence in the making."""

    states: dict[str, JobState] = field(default_factory=dict)
    placed: dict[str, dict[tuple[int, str], None]] = field(default_factory=dict)
    hosts: dict[str, HostUpdated] = field(default_factory=dict)
    requests: list[JobRequest] = field(default_factory=list)
    checkpoints: list[Fact] = field(default_factory=list)

    def take(self, message: BusMessage, event: EventBase) -> None:
        """Keep what one message tells."""
        if isinstance(event, JobEventBase):
            state = event.state
            known = self.states.get(state.job)
            if known is None or state.job_n > known.job_n:
                self.states[state.job] = state
            if isinstance(event, JobAssigned) and state.host is not None:
                self.placed.setdefault(state.job, {})[state.attempt, state.host] = None
        elif isinstance(event, HostUpdated):
            self.hosts[event.host] = event
        elif isinstance(event, RequestBase):
            self.requests.append(event)  # type: ignore[arg-type]  # every request of a job is in the union
        elif isinstance(event, RunCheckpoint):
            where = RunSubject.parse(message.subject)
            self.checkpoints.append(Fact(where.host, where.job, where.attempt, event))


def id_of(session: Session) -> str:
    """Return the id of the last restore, empty where there was none."""
    return store.position(session, RESTORED).epoch


def is_pending(session: Session) -> bool:
    """Tell whether the database was restored and has not caught up yet."""
    at = store.position(session, RESTORED)
    return bool(at.epoch) and at.last_seq == PENDING


async def heal(
    bus: Bus, database: Database, lead: Leadership, now: Moment, limits: Limits
) -> Healed | None:
    """Catch up once after a restore; None where there is nothing to do.

    Raises BusError, DatabaseBusy, DatabaseFull (then nothing changed; call again), LeadershipLost.
    """
    if not await database.read(is_pending):
        return None
    evidence = await gather(bus, await database.read(lambda s: store.position(s, "RUNS")))
    state, desired = await database.read(lambda s: _load(s, evidence, now, limits))
    healed = core.heal(state, evidence, desired, now)
    await database.write(lambda s: _store(s, healed, lead, now))
    log.warning(
        "restored",
        caught_up=len(healed.caught_up),
        jobs_taken_back=list(healed.new[:100]),
        without_configuration=list(healed.unconfigured[:100]),
    )
    return healed


async def gather(bus: Bus, runs: Position) -> Evidence:
    """Read JOBS and REQUESTS whole, RUNS behind the restored position, and `ctl`. Raises BusError."""
    found = _Found()
    for stream in ("JOBS", "REQUESTS", "RUNS"):
        state = await bus.stream_state(stream)
        goes_on = stream == "RUNS" and state.epoch == runs.epoch and state.last_seq >= runs.last_seq
        after = runs.last_seq if goes_on else 0
        async for message in _messages(bus, stream, after, state.epoch, state.last_seq):
            try:
                _, event = decode(message.headers, message.data)
            except EventMalformed:
                continue
            if not isinstance(event, UnknownEvent):
                found.take(message, event)
    return Evidence(
        states=found.states,
        placed={job: tuple(pairs) for job, pairs in found.placed.items()},
        requests=tuple(found.requests),
        checkpoints=tuple(found.checkpoints),
        hosts=tuple(found.hosts.values()),
        told=await _told(bus) if found.states else None,
    )


async def _messages(
    bus: Bus, stream: str, after: int, epoch: str, last_seq: int
) -> AsyncIterator[BusMessage]:
    if last_seq <= after or not (await bus.stream_state(stream)).messages:
        return
    reader = await bus.reader(stream, after=after, epoch=epoch)
    try:
        while True:
            page = await reader.fetch(PAGE, timeout=PAGE_SECONDS)
            for message in page:
                if message.seq <= last_seq:
                    yield message
            if page and page[-1].seq >= last_seq:
                return
            if page:
                continue
            if reader.pending == 0 or (await bus.stream_state(stream)).first_seq > last_seq:
                return  # the last ones have left the stream meanwhile
            raise BusError(f"{stream} gave nothing for {PAGE_SECONDS:g} s")
    finally:
        await reader.close()


async def _told(bus: Bus) -> dict[Key, ControlEntry]:
    found: dict[Key, ControlEntry] = {}
    for key, value in (await bus.control().entries("")).items():
        host, _, job = key.partition(".")
        try:
            entry = ControlEntry.model_validate_json(value)
        except ValueError:
            continue  # the epoch key of a host, or what no version of ours has written
        if entry.job == job:
            found[host, job] = entry
    return found


def _load(
    session: Session, evidence: Evidence, now: Moment, limits: Limits
) -> tuple[ClusterState, dict[Key, ControlEntry]]:
    state = store.load(session, now, limits)
    asked = set(core.mentioned(evidence))
    asked |= {job for r in evidence.requests for job in mentioned(RequestArrived(r))}
    seen: set[str] = set()
    while missing := sorted(asked - state.jobs.keys() - seen):
        seen |= set(missing)
        jobs = store.load_jobs(session, missing)
        state = adopt(state, jobs, now)
        asked |= {ref for job in jobs for ref in references(job)}
    rows = session.scalars(select(DesiredRow).where(col(DesiredRow.entry).is_not(None)))
    desired = {
        (row.host, row.job): ControlEntry.model_validate(json.loads(row.entry or "{}"))
        for row in rows
    }
    return state, desired


def _store(session: Session, healed: Healed, lead: Leadership, now: Moment) -> None:
    """Store everything in one transaction; `ctl` is then written again from it."""
    leader.fence(session, lead, leader.unix())
    session.execute(delete(DesiredRow))
    rows = [
        {
            "host": host, "job": job, "version": 1, "outbox_id": 0, "written_version": 0,
            "written_epoch": "",
            "entry": entry.model_copy(update={"epoch": ""}).model_dump_json(),
        }
        for (host, job), entry in healed.kept.items()
    ]  # fmt: skip
    if rows:
        session.execute(insert(DesiredRow), rows)
    lasting = [d for d in healed.decisions if not isinstance(d, Counted)]
    healed_at = Position(RESTORED, id_of(session), int(now.wall.timestamp()))
    store.apply(session, lasting, healed_at)
