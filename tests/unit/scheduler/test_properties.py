"""Whatever happens in whatever order: no GPU twice, a reason for all who wait, one end, higher attempts, no starvation."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.scheduler.core.decisions import DesiredCleared, DesiredSet, Published
from services.scheduler.core.feasible import check
from services.scheduler.core.inputs import FactArrived, HostRequestArrived, Place, RequestArrived
from services.scheduler.core.order import Ready
from services.scheduler.core.place import schedule
from services.scheduler.core.state import ClusterState
from services.scheduler.core.step import adopt, evict
from shared.events.calls import RunReport
from shared.events.requests import (
    HostDrainRequested,
    JobCancelRequested,
    JobDeclareLostRequested,
    JobDeleteRequested,
    JobPauseRequested,
    JobPriorityRequested,
    JobResumeRequested,
    JobRetryRequested,
)
from shared.events.run import RunAccepted, RunCheckpoint, RunExited, RunFact, RunRefused, RunStarted
from shared.jobs.lifecycle import Change
from shared.jobs.reasons import REASONS, Reason
from shared.jobs.resources import GpuInfo
from shared.jobs.status import TERMINAL
from tests.unit.scheduler.build import EPOCH, World, a_beat, job_id

HOSTS = ("h1", "h2", "h3")
REQUESTS: tuple[type[Any], ...] = (
    JobCancelRequested,
    JobPauseRequested,
    JobResumeRequested,
    JobRetryRequested,
    JobDeclareLostRequested,
    JobDeleteRequested,
)
TYPES = ("NVIDIA A100-SXM4-80GB", "NVIDIA L40S")

op = st.one_of(
    st.tuples(
        st.just("submit"),
        st.integers(1, 4),
        st.sampled_from([None, "A100", "L40S"]),
        st.sampled_from([0, 50, 50, 50, 90]),
        st.sampled_from(["nothing", "depends", "model", "pin"]),
        st.sampled_from(["keep", "stop_and_requeue"]),
    ),
    st.tuples(st.just("request"), st.sampled_from(REQUESTS), st.integers(0, 8)),
    st.tuples(st.just("priority"), st.integers(0, 100), st.integers(0, 8)),
    st.tuples(
        st.just("beat"), st.sampled_from(HOSTS), st.integers(0, 4), st.sampled_from(["b1", "b1", "b1", "b2"])
    ),
    st.tuples(st.just("time"), st.sampled_from([0.5, 5.0, 40.0, 700.0, 90_000.0])),
    st.tuples(
        st.just("fact"),
        st.integers(0, 8),
        st.integers(0, 9),
        st.sampled_from(["right", "right", "right", "right", "stale", "elsewhere"]),
        st.sampled_from(sorted(REASONS)),
    ),
    st.tuples(st.just("drain"), st.sampled_from(HOSTS), st.booleans(), st.booleans()),
    st.tuples(st.just("place"), st.integers(0, 3)),
)  # fmt: skip


class Chaos(World):
    """Interprets random operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.host_n = 0
        self.fact_n = 0

    def apply(self, one: tuple[Any, ...]) -> None:
        getattr(self, f"do_{one[0]}")(*one[1:])

    def pick(self, index: int) -> int | None:
        return 1 + index % self.count if self.count else None

    def do_submit(
        self, gpus: int, kind: str | None, priority: int, binding: str, policy: str
    ) -> None:
        fields: dict[str, Any] = {"num_gpus": gpus, "gpu_type": kind, "priority": priority}
        if binding == "depends" and self.count:
            fields["depends_on"] = [job_id(self.count)]
        if binding == "model" and self.count:
            fields["model_path"] = f"job:{job_id(self.count)}"
        if binding == "pin":
            fields["host"] = "h2"
        self.count += 1
        self.submit(self.count, disconnect_policy=policy, **fields)

    def do_request(self, kind: type[Any], index: int) -> None:
        number = self.pick(index)
        if number is not None:
            self.request(number, kind)

    def do_priority(self, priority: int, index: int) -> None:
        number = self.pick(index)
        if number is not None:
            self.request(number, JobPriorityRequested, priority=priority)

    def do_beat(self, host: str, gpus: int, boot_id: str) -> None:
        known = self.state.hosts.get(host)
        runs = [
            RunReport(job=job, attempt=self.state.jobs[job].state.attempt, alive=True)
            for job in (known.runs if known else ())
        ]
        kind = TYPES[HOSTS.index(host) % 2]
        self.do(a_beat(host, gpus, boot_id=boot_id, instance=boot_id, name=kind, runs=runs))

    def do_time(self, seconds: float) -> None:
        self.pass_(seconds)

    def do_drain(self, host: str, drained: bool, stop: bool) -> None:
        self.host_n += 1
        request = HostDrainRequested(
            host=host, req_n=self.host_n, at=EPOCH, drained=drained, stop_jobs=stop
        )
        self.do(HostRequestArrived(request))

    def do_fact(self, index: int, kind: int, sender: str, reason: Reason) -> None:
        number = self.pick(index)
        if number is None:
            return
        job = self.job(number)
        host = job.run.host if job.run else "h1"
        attempt = job.state.attempt
        if sender == "stale":
            attempt = max(0, attempt - 1)
        if sender == "elsewhere":
            host = "h3" if host != "h3" else "h1"
        self.fact_n += 1
        self.do(FactArrived(host, job.id, attempt, _fact(kind, self.fact_n, reason)))

    def do_place(self, limit: int) -> None:
        self.do(Place(limit=limit or 100, refresh=1000))


def _fact(kind: int, seq: int, reason: Reason) -> RunFact:
    exits: dict[int, dict[str, Any]] = {
        5: {"outcome": "completed"},
        6: {"outcome": "stopped", "stop_cause": "pause"},
        7: {"outcome": "stopped", "stop_cause": "drain"},
        8: {"outcome": "failed", "reason": reason},
    }
    if kind in exits:
        return RunExited(seq=seq, t=0, **exits[kind])
    if kind == 0:
        return RunAccepted(seq=seq, t=0)
    if kind == 1:
        return RunRefused(seq=seq, t=0, reason=reason)
    if kind in (2, 9):
        return RunStarted(seq=seq, t=0, pid=1, boot_id="b1", warm=True)
    return RunCheckpoint(seq=seq, t=0, step=20 * kind, path=f"/c/checkpoint-{20 * kind}")


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(op, min_size=5, max_size=60))
def test_invariants_hold_after_every_input(operations: list[tuple[Any, ...]]) -> None:
    world = Chaos()
    for one in operations:
        world.apply(one)
        _no_gpu_twice(world.state)
    world.pass_(1.0)
    world.do(Place(limit=1000, refresh=1000))
    _everyone_knows_why(world.state)
    _books_are_dense(world)
    _hosts_are_told_the_truth(world)
    _index_is_what_it_would_be_afresh(world)


def _no_gpu_twice(state: ClusterState) -> None:
    for host in state.hosts.values():
        held = [index for indexes in host.runs.values() for index in indexes]
        assert len(held) == len(set(held))
    runs = {job.id: job.run for job in state.jobs.values() if job.run is not None}
    booked = {job: host.id for host in state.hosts.values() for job in host.runs}
    assert booked == {job: run.host for job, run in runs.items()}
    assert len(set(state.reservations.values())) == len(state.reservations)


def _everyone_knows_why(state: ClusterState) -> None:
    for job in state.jobs.values():
        if job.waits:
            assert job.state.waiting_for is not None, job
            assert job.state.reason is not None
            assert job.state.waiting_for.en
            assert job.state.waiting_for.zh


def _books_are_dense(world: World) -> None:
    events: dict[str, list[Published]] = defaultdict(list)
    for decision in world.decisions:
        if isinstance(decision, Published):
            events[decision.state.job].append(decision)
    for mine in events.values():
        assert [e.state.job_n for e in mine] == list(range(1, len(mine) + 1))
        attempts = [e.state.attempt for e in mine if e.change is Change.ASSIGNED]
        assert attempts == sorted(set(attempts))
        ended = False
        for event in mine:
            if event.change is Change.RETRIED:
                ended = False
            ends = event.state.status in TERMINAL and event.change not in (
                Change.UPDATED,
                Change.DELETED,
            )
            assert not (ended and ends), "two ends without a retry between them"
            ended = ended or ends


def _hosts_are_told_the_truth(world: World) -> None:
    wanted: dict[tuple[str, str], DesiredSet] = {}
    for decision in world.decisions:
        if isinstance(decision, DesiredSet):
            wanted[decision.host, decision.job] = decision
        elif isinstance(decision, DesiredCleared):
            wanted.pop((decision.host, decision.job), None)
    for job in world.state.jobs.values():
        told_to_run = [d.host for (_, j), d in wanted.items() if j == job.id and d.desired == "run"]
        run = job.run
        if run is None:
            assert told_to_run == []
        else:
            assert told_to_run in ([run.host], [])
            assert wanted[run.host, job.id].attempt == run.attempt


def _index_is_what_it_would_be_afresh(world: World) -> None:
    state = world.state
    bare = {h.id: replace(h, runs={}) for h in state.hosts.values()}
    afresh = adopt(ClusterState(hosts=bare, limits=state.limits), state.jobs.values(), world.now)
    assert afresh.queue.standing == state.queue.standing
    assert dict(afresh.queue.classes) == dict(state.queue.classes)
    assert dict(afresh.queue.waits) == dict(state.queue.waits)
    assert {h.id: h.runs for h in afresh.hosts.values()} == {
        h.id: h.runs for h in state.hosts.values()
    }
    assert {k: v for k, v in afresh.dependents.items() if v} == {
        k: v for k, v in state.dependents.items() if v
    }
    assert afresh.untold == state.untold
    kept = evict(state, world.now, after_seconds=-1)
    assert kept.queue == state.queue
    assert {j.id for j in state.jobs.values() if not j.is_ended} <= kept.jobs.keys()


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(op, min_size=5, max_size=40), st.randoms(use_true_random=False))
def test_a_plan_is_sound_work_conserving_and_independent_of_order(
    operations: list[tuple[Any, ...]], shuffled: random.Random
) -> None:
    world = Chaos()
    for one in operations:
        world.apply(one)
    world.pass_(1.0)
    plan = schedule(world.state, world.now)
    assert schedule(_shuffle(world.state, shuffled), world.now) == plan
    waiting = {job.id for job in world.state.jobs.values() if job.waits}
    assigned = {a.job for a in plan.assignments}
    assert assigned | plan.waiting.keys() == waiting
    assert not assigned & plan.waiting.keys()
    hosts = dict(world.state.hosts)
    asks = {
        job: standing.ask
        for job, (_, standing) in world.state.queue.standing.items()
        if isinstance(standing, Ready)
    }
    for one in plan.assignments:
        host = hosts[one.host]
        assert check(asks[one.job], host) is None
        free = {g.index for g in host.free}
        assert set(one.gpus) <= free
        assert len(one.gpus) == asks[one.job].num_gpus
        hosts[one.host] = replace(host, runs={**host.runs, one.job: one.gpus})
    open_hosts = [h for h in hosts.values() if h.id not in plan.reservations.values()]
    for job in plan.waiting.keys() & asks.keys():
        assert all(check(asks[job], host) is not None for host in open_hosts), "room left unused"


def _shuffle(state: ClusterState, shuffled: random.Random) -> ClusterState:
    def mixed(some: Any) -> Any:
        items = list(some.items())
        shuffled.shuffle(items)
        return dict(items)

    queue = state.queue
    return replace(
        state,
        jobs=mixed(state.jobs),
        hosts=mixed(state.hosts),
        reservations=mixed(state.reservations),
        queue=replace(
            queue,
            classes=mixed(queue.classes),
            waits=mixed(queue.waits),
            due=mixed(queue.due),
            standing=mixed(queue.standing),
        ),
    )


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    longest=st.integers(1, 12),
    seed=st.integers(0, 10_000),
    typed=st.booleans(),
)
def test_a_large_job_starts_although_small_ones_never_stop_coming(
    sizes: list[int], longest: int, seed: int, typed: bool
) -> None:
    """It starts once what ran on its kept host has ended: no run lasts longer than `longest`."""
    shop = Shop(sizes, longest, random.Random(seed))
    small = {"gpu_type": "A100"} if typed else {}
    for _ in range(8):
        shop.hour(arrivals=shop.chance.randint(1, 4), **small)
    for waiting in [j for j in shop.world.state.jobs.values() if j.waits]:
        request = JobCancelRequested(job=waiting.id, req_n=2, at=EPOCH)
        shop.world.do(RequestArrived(request))
    large = shop.submit(num_gpus=max(sizes))
    for _ in range(longest + 1):
        shop.hour(arrivals=shop.chance.randint(1, 4), **small)
    assert shop.world.job(large).state.attempt == 1


class Shop:
    """Hosts on which runs of random length come and go."""

    def __init__(self, sizes: list[int], longest: int, chance: random.Random) -> None:
        self.world = World()
        self.longest = longest
        self.chance = chance
        self.count = 0
        self.now = 0
        self.ends: dict[int, int] = {}
        for number, size in enumerate(sizes):
            self.world.do(a_beat(f"h{number}", size))

    def submit(self, **fields: Any) -> int:
        self.count += 1
        self.world.submit(self.count, **fields)
        return self.count

    def hour(self, arrivals: int, **fields: Any) -> None:
        """End what is due, let new jobs come, place, and say how long the new runs will take."""
        self.now += 1
        for job in [j for j, end in sorted(self.ends.items()) if end <= self.now]:
            self.world.exited(job)
            del self.ends[job]
        for _ in range(arrivals):
            self.submit(num_gpus=1, **fields)
        self.world.place()
        for number in range(1, self.count + 1):
            if self.world.job(number).run is not None and number not in self.ends:
                self.ends[number] = self.now + self.chance.randint(1, self.longest)


def test_gpu_uuids_follow_indexes() -> None:
    world = World()
    beat = a_beat("h1", 2)
    gpus = (
        GpuInfo(index=3, uuid="GPU-c", name="x", memory_mib=1),
        GpuInfo(index=1, uuid="GPU-a", name="x", memory_mib=1),
    )
    inventory = beat.heartbeat.inventory.model_copy(update={"gpus": gpus})
    world.do(a_beat("h1", inventory=inventory))
    world.submit(1, num_gpus=2)
    world.place()
    state = world.job(1).state
    assert (state.gpus, state.gpu_uuids) == ((1, 3), ("GPU-a", "GPU-c"))
