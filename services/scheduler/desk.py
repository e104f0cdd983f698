"""The one place where the cluster's state changes: inputs in, a pure step, one transaction, then the new state."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from sqlmodel import Session

from services.scheduler import leader, store
from services.scheduler.core.decisions import Counted, Decision, DesiredSet, HostSaved, Published
from services.scheduler.core.inputs import Input, Place, mentioned, names
from services.scheduler.core.state import ClusterState, Limits, Moment, may_place
from services.scheduler.core.step import adopt, evict, references, steps
from services.scheduler.leader import Leadership
from services.scheduler.store import Position
from shared.clock import Clock
from shared.db import Database
from shared.log import logger

ASSIGN_AT_ONCE = 256
log = logger("scheduler.desk")


class Desk:
    """State in memory is always what SQL holds: it is replaced only after the commit."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        lead: Leadership,
        state: ClusterState,
        crash: Callable[[str], None],
    ) -> None:
        """Start from `state`, loaded under `lead`."""
        self.state = state
        self.decided = asyncio.Event()
        """Set when there is something to publish or write."""
        self.stirred = asyncio.Event()
        """Set when there may be something to place."""
        self.stirred.set()
        self.is_open: Callable[[], bool] = lambda: True
        """May jobs be placed now? Set from outside; see `gate`."""
        self.counters: Counter[str] = Counter()
        self._database = database
        self._clock = clock
        self._lead = lead
        self._crash = crash
        self._lock = asyncio.Lock()

    @staticmethod
    async def open(
        database: Database,
        clock: Clock,
        lead: Leadership,
        limits: Limits,
        crash: Callable[[str], None],
    ) -> Desk:
        """Load the cluster."""
        now = Moment(clock.now(), clock.boot())
        # The whole cluster stays in memory: looking for garbage in it, now and later, would only cost time.
        gc.disable()
        try:
            state = await database.read(lambda session: store.load(session, now, limits))
            gc.freeze()
        finally:
            gc.enable()
        return Desk(database, clock, lead, state, crash)

    def now(self) -> Moment:
        """Return this instant on both clocks."""
        return Moment(self._clock.now(), self._clock.boot())

    async def commit(
        self,
        inputs: Sequence[Input],
        position: Position | None = None,
        traces: Mapping[str, str] | None = None,
    ) -> tuple[Decision, ...]:
        """Apply inputs and store everything they changed, with `position`, in one transaction.

        What requests and facts let be placed is placed in the same transaction: one fsync from the event to its
        decisions. Heartbeats come one by one, hundreds of them when a site comes back: they are answered together.

        Raises LeadershipLost, DatabaseBusy or DatabaseFull; then nothing changed, here nor there.
        """
        async with self._lock:
            before = self.state
            known = await self._with_named_jobs(inputs)
            now = self.now()
            state, decisions = _steps(known, inputs, now)
            placing = any(isinstance(one, Place) for one in inputs)
            stirs = not placing and may_place(before, state)
            at_once = stirs and position is not None and self.is_open()
            if at_once:
                state, placed = _steps(state, [Place(ASSIGN_AT_ONCE, 0)], now)
                decisions = (*decisions, *placed)
            lasting = [d for d in decisions if not isinstance(d, Counted)]
            if lasting or position is not None:
                self._crash("before_commit")
                await self._database.write(lambda s: self._store(s, lasting, position, traces))
                self._crash("after_commit")
            self.state = state
        self._note(decisions)
        if stirs and not at_once:
            self.stirred.set()
        return decisions

    async def save_seen(self) -> None:
        """Store when each host was last heard of."""
        seen = {h.id: h.seen.wall.timestamp() for h in self.state.hosts.values() if h.seen}

        def work(session: Session) -> None:
            leader.fence(session, self._lead, leader.unix())
            store.save_seen(session, seen)

        await self._database.write(work)

    async def evict(self) -> None:
        """Let go of jobs that ended a while ago."""
        async with self._lock:
            self.state = evict(self.state, self.now())

    def _store(
        self,
        session: Session,
        decisions: Sequence[Decision],
        position: Position | None,
        traces: Mapping[str, str] | None,
    ) -> None:
        leader.fence(session, self._lead, leader.unix())
        store.apply(session, decisions, position, traces)

    async def _with_named_jobs(self, inputs: Sequence[Input]) -> ClusterState:
        """Return the state with every stored job that these inputs are about, and those that they refer to."""
        state = self.state
        wanted = {j for one in inputs for j in (*names(one), *mentioned(one))}
        wanted |= {
            ref
            for one in inputs
            for name in names(one)
            if (job := state.jobs.get(name)) is not None and job.is_ended
            for ref in references(job)
        }
        asked: set[str] = set()
        while missing := sorted(j for j in wanted if j not in state.jobs and j not in asked):
            asked |= set(missing)
            found = await self._database.read(lambda s, ids=missing: store.load_jobs(s, ids))  # type: ignore[misc]
            state = adopt(state, found, self.now())
            wanted |= {ref for job in found for ref in references(job)}
        return state

    def _note(self, decisions: Sequence[Decision]) -> None:
        for one in decisions:
            if isinstance(one, Counted):
                self.counters[one.name] += 1
                log.info(one.name, **one.detail)
        if any(isinstance(d, Published | DesiredSet | HostSaved) for d in decisions):
            self.decided.set()
        if sum(isinstance(d, DesiredSet) for d in decisions) >= ASSIGN_AT_ONCE:
            self.stirred.set()


def _steps(
    state: ClusterState, inputs: Sequence[Input], now: Moment
) -> tuple[ClusterState, tuple[Decision, ...]]:
    """Step through all at once; should one input prove impossible, go on without that one."""
    try:
        return steps(state, inputs, now)
    except Exception as error:  # noqa: BLE001 - one poisonous message must not stop the queue for ever
        log.error("step_failed", error=repr(error)[:500], inputs=len(inputs))
    decisions: list[Decision] = []
    for one in inputs:
        try:
            state, made = steps(state, (one,), now)
        except Exception as error:  # noqa: BLE001 - as above
            log.error("input_refused", error=repr(error)[:500], input=repr(one)[:500])
            continue
        decisions += made
    return state, tuple(decisions)
