"""A restored scheduler and the streams: whatever moment the backup is of, it ends where the lost one stood."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.scheduler import codec
from services.scheduler.core.decisions import (
    ConfigSaved,
    Decision,
    DesiredCleared,
    DesiredSet,
    Published,
)
from services.scheduler.core.heal import Evidence, Fact, Healed, Key, heal
from services.scheduler.core.inputs import FactArrived, Input, Place, RequestArrived
from services.scheduler.core.state import ClusterState, Phase
from services.scheduler.core.step import steps
from shared.events.calls import ControlEntry, RunReport
from shared.events.requests import (
    JobCancelRequested,
    JobDeleteRequested,
    JobPauseRequested,
    JobRequest,
    JobResumeRequested,
    JobRetryRequested,
    JobSecretsRequested,
)
from shared.events.run import RunCheckpoint
from shared.jobs.lifecycle import Change
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus
from tests.unit.scheduler.build import World, a_beat, job_id

REQUESTS: tuple[type[Any], ...] = (
    JobCancelRequested,
    JobPauseRequested,
    JobResumeRequested,
    JobRetryRequested,
)


@dataclass
class Streams:
    """What a broker would hold of a world's whole life."""

    published: list[Published] = field(default_factory=list)
    requests: list[JobRequest] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    desired: dict[Key, ControlEntry] = field(default_factory=dict)
    configs: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def take(self, inputs: tuple[Input, ...], decisions: list[Decision]) -> None:
        for one in inputs:
            if isinstance(one, RequestArrived):
                self.requests.append(one.request)
            if isinstance(one, FactArrived) and isinstance(one.fact, RunCheckpoint):
                self.facts.append(Fact(one.host, one.job, one.attempt, one.fact))
        for made in decisions:
            if isinstance(made, Published):
                self.published.append(made)
            elif isinstance(made, ConfigSaved):
                self.configs[made.job] = made.config
            elif isinstance(made, DesiredSet):
                config = dict(self.configs.get(made.job, {})) if made.desired == "run" else {}
                self.desired[made.host, made.job] = codec.desired_entry(made, config)
            elif isinstance(made, DesiredCleared):
                self.desired.pop((made.host, made.job), None)

    def evidence(self, facts_from: int = 0) -> Evidence:
        states = {p.state.job: p.state for p in self.published}
        placed: dict[str, tuple[tuple[int, str], ...]] = {}
        for one in self.published:
            if one.change is Change.ASSIGNED:
                pair = (one.state.attempt, one.state.host or "")
                placed[one.state.job] = (*placed.get(one.state.job, ()), pair)
        return Evidence(
            states, placed, tuple(self.requests), tuple(self.facts[facts_from:]),
            told=dict(self.desired),
        )  # fmt: skip


class Lived(World):
    """A world that leaves streams behind, and of which a backup may be taken."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = Streams()
        self.saved: tuple[ClusterState, dict[Key, ControlEntry], int] | None = None

    def do(self, *inputs: Input) -> list[Decision]:
        made = super().do(*inputs)
        self.streams.take(inputs, made)
        return made

    def backup(self) -> None:
        self.saved = (self.state, dict(self.streams.desired), len(self.streams.facts))

    def restored(self, evidence: Evidence | None = None) -> Healed:
        assert self.saved is not None
        state, desired, facts = self.saved
        return heal(state, evidence or self.streams.evidence(facts), desired, self.now)


def assert_same(lost: ClusterState, healed: ClusterState) -> None:
    """The restored scheduler knows of every job what the lost one knew."""
    assert healed.jobs.keys() == lost.jobs.keys()
    for job_id_, before in lost.jobs.items():
        after = healed.jobs[job_id_]
        assert after.state == before.state
        assert (after.run is None) == (before.run is None), job_id_
        if before.run is not None and after.run is not None:
            for name in ("attempt", "host", "gpus", "gpu_uuids"):
                assert getattr(after.run, name) == getattr(before.run, name)
        live = {(c.step, c.host, c.attempt, c.seq) for c in before.checkpoints if not c.deleted}
        assert {
            (c.step, c.host, c.attempt, c.seq) for c in after.checkpoints if not c.deleted
        } == live
        assert after.demand.num_gpus == before.demand.num_gpus
        assert after.after == before.after
        assert after.resume_after_stop == before.resume_after_stop
        assert after.secret_names == before.secret_names
        assert max(after.attempt_floor, after.state.attempt) >= before.state.attempt
    for host_id, host in lost.hosts.items():
        if host_id in healed.hosts:
            assert healed.hosts[host_id].runs == host.runs


operation = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 2)),
    st.tuples(st.just("request"), st.sampled_from(REQUESTS), st.integers(0, 5)),
    st.tuples(st.just("fact"), st.sampled_from(["started", "checkpoint", "ended", "failed"]), st.integers(0, 5)),
    st.tuples(st.just("place"), st.just(0)),
    st.tuples(st.just("backup"), st.just(0)),
)  # fmt: skip


def live(world: Lived, operations: list[tuple[Any, ...]]) -> None:
    world.do(a_beat("h1", 3), a_beat("h2", 3))
    world.backup()
    count, steps_ = 0, random.Random(1)
    for name, *words in operations:
        if name == "submit" and count < 6:
            count += 1
            world.submit(count, num_gpus=words[0], max_retries=5)
        elif name == "place":
            world.do(Place())
        elif name == "backup":
            world.backup()
        elif count and name == "request":
            world.request(1 + words[1] % count, words[0])
        elif count and name == "fact":
            tell(world, 1 + words[1] % count, words[0], steps_)


def tell(world: Lived, number: int, kind: str, steps_: random.Random) -> None:
    """Let the host of a job say something about its open attempt, if there is one."""
    if world.job(number).run is None:
        return
    if kind == "started":
        world.started(number)
    elif kind == "checkpoint":
        world.checkpoint(number, steps_.randrange(0, 60, 10))
    elif kind == "ended":
        world.exited(number, outcome="completed")
    else:
        world.exited(number, outcome="failed", reason=Reason.EXIT_UNKNOWN)
    world.seconds += 1


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(operation, max_size=40))
def test_a_backup_of_any_moment_catches_up_to_the_loss(operations: list[tuple[Any, ...]]) -> None:
    world = Lived()
    live(world, operations)
    healed = world.restored()
    assert_same(world.state, healed.state)
    assert healed.unconfigured == ()
    # Nothing is decided anew: no event, no attempt; and doing it twice changes nothing.
    assert [d for d in healed.decisions if isinstance(d, Published)] == []
    wanted = {k: e for k, e in world.streams.desired.items() if e.desired in ("run", "pause")}
    for key, entry in wanted.items():
        assert healed.kept[key] == entry, key
    again = heal(healed.state, world.streams.evidence(), healed.kept, world.now)
    assert_same(healed.state, again.state)
    assert again.caught_up == ()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(operation, max_size=30))
def test_without_streams_the_backup_stays_as_it_is(operations: list[tuple[Any, ...]]) -> None:
    world = Lived()
    live(world, operations)
    assert world.saved is not None
    healed = world.restored(Evidence())
    assert healed.state.jobs == world.saved[0].jobs
    assert dict(healed.kept) == world.saved[1]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(operation, max_size=40))
def test_reading_the_requests_once_more_answers_none_twice(
    operations: list[tuple[Any, ...]],
) -> None:
    world = Lived()
    live(world, operations)
    healed = world.restored()
    replayed = tuple(RequestArrived(r) for r in world.streams.requests)
    _, made = steps(healed.state, replayed, world.now)
    assert [d for d in made if isinstance(d, Published)] == []


def test_a_job_of_which_no_configuration_is_left_ends_with_a_sentence() -> None:
    world = Lived()
    world.do(a_beat("h1", 1))
    world.backup()
    world.submit(1)
    evidence = world.streams.evidence()
    healed = world.restored(replace(evidence, requests=()))
    job = healed.state.jobs[job_id(1)]
    assert job.state.status is JobStatus.FAILED
    assert job.state.reason is Reason.CONFIG_INVALID
    assert "submit it again" in (job.state.message.en if job.state.message else "")
    assert healed.unconfigured == (job_id(1),)


def test_an_assignment_that_its_host_never_heard_of_is_made_again_with_a_higher_number() -> None:
    world = Lived()
    world.do(a_beat("h1", 1))
    world.backup()
    world.submit(1)
    world.place()
    evidence = world.streams.evidence()
    healed = world.restored(replace(evidence, told={}))
    job = healed.state.jobs[job_id(1)]
    assert job.run is None
    assert job.state.job_n == world.job(1).state.job_n + 1
    state, _ = steps(healed.state, (Place(),), world.now)
    run = state.jobs[job_id(1)].run
    assert run is not None
    assert (run.attempt, run.phase) == (2, Phase.ASSIGNED)


def test_a_stop_that_was_decided_reaches_the_host_though_ctl_does_not_hold_it() -> None:
    world = Lived()
    world.do(a_beat("h1", 1))
    world.backup()
    world.running(1)
    before = dict(world.streams.desired)
    world.request(1, JobCancelRequested)
    healed = world.restored(replace(world.streams.evidence(), told=before))
    (wanted,) = [d for d in healed.decisions if isinstance(d, DesiredSet)]
    assert (wanted.desired, wanted.stop_mode) == ("stop", "cancel")


def test_names_of_secrets_and_a_resume_during_a_pause_are_not_forgotten() -> None:
    world = Lived()
    world.do(a_beat("h1", 1))
    world.running(1)
    world.backup()
    world.request(1, JobSecretsRequested, secret_names=("HF_TOKEN",))
    world.request(1, JobPauseRequested)
    world.request(1, JobResumeRequested)
    assert_same(world.state, world.restored().state)
    assert world.restored().state.jobs[job_id(1)].resume_after_stop


def test_a_deleted_job_stays_deleted_and_its_files_are_still_to_be_collected() -> None:
    world = Lived()
    world.do(a_beat("h1", 1))
    world.running(1)
    world.exited(1)
    world.backup()
    world.request(1, JobDeleteRequested)
    healed = world.restored()
    assert healed.state.jobs[job_id(1)].state.deleted
    assert healed.kept["h1", job_id(1)].desired == "collect"


def reports(attempt: int, *, alive: bool = True) -> tuple[RunReport, ...]:
    return (RunReport(job=job_id(1), attempt=attempt, alive=alive, exited=not alive),)


def assert_adopted(world: World, attempt: int) -> None:
    """The books hold the host's attempt, it ends as any other, and the next one has a higher number."""
    job = world.job(1)
    assert job.run is not None
    assert (job.run.attempt, job.run.host, job.state.attempt) == (attempt, "h1", attempt)
    desired = [d for d in world.decisions if isinstance(d, DesiredSet)][-1]
    assert (desired.attempt, desired.desired) == (attempt, "run")
    world.started(1)
    world.exited(1, outcome="failed", reason=Reason.HOST_REBOOTED)
    world.pass_(600)
    world.do(a_beat("h1", 1), Place())
    run = world.job(1).run
    assert run is not None
    assert run.attempt == attempt + 1


@pytest.mark.parametrize("alive", [True, False])
def test_an_attempt_that_only_its_host_knows_is_taken_into_the_books(alive: bool) -> None:
    for prepare in (_waits, _runs, _paused, _failed):
        world = World()
        world.do(a_beat("h1", 1))
        prepare(world)
        before = world.job(1).state
        made = world.do(a_beat("h1", 1, runs=reports(4, alive=alive)))
        assert world.job(1).state.retries_spent <= before.retries_spent
        closed = [d.state for d in made if isinstance(d, Published) and d.change is Change.REQUEUED]
        assert all(state.final_seq == {} for state in closed), (
            "else the api fences what is on the host"
        )
        assert world.do(a_beat("h1", 1, runs=reports(4, alive=alive))) == []
        assert_adopted(world, 4)


def _waits(world: World) -> None:
    world.submit(1)


def _runs(world: World) -> None:
    world.running(1)


def _paused(world: World) -> None:
    world.running(1)
    world.request(1, JobPauseRequested)
    world.exited(1, outcome="stopped", stop_cause="pause")
    assert world.job(1).state.status is JobStatus.PAUSED


def _failed(world: World) -> None:
    world.running(1, max_retries=0)
    world.exited(1, outcome="failed", reason=Reason.CUDA_OOM)
    assert world.job(1).state.status is JobStatus.FAILED


def test_a_completed_or_deleted_job_is_not_reopened_by_what_a_host_says() -> None:
    world = World()
    world.do(a_beat("h1", 1))
    world.running(1)
    world.exited(1)
    world.do(a_beat("h1", 1, runs=reports(2)))
    assert world.job(1).state.status is JobStatus.COMPLETED
    world.request(1, JobDeleteRequested)
    world.do(a_beat("h1", 1, runs=reports(3)))
    assert world.job(1).run is None


def test_several_attempts_are_taken_in_their_order() -> None:
    world = World()
    world.do(a_beat("h1", 1))
    world.submit(1)
    world.do(a_beat("h1", 1, runs=(*reports(1, alive=False), *reports(2))))
    job = world.job(1)
    assert job.run is not None
    assert job.run.attempt == 2
