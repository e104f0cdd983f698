"""A full disk on a host: what stops, what waits, and what goes on by itself once there is room."""

from __future__ import annotations

from typing import Any

import pytest

from services.scheduler.core.inputs import Tick
from shared.disk.levels import Shortage, Volume
from shared.events.requests import JobCancelRequested, JobPauseRequested, JobResumeRequested
from shared.events.run import RunRefused
from shared.jobs.lifecycle import Change
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus as S
from tests.unit.scheduler.build import World, a_beat, an_inventory

MIB = 1 << 20
JOBS, CHECKPOINTS = "/home/jobs", "/ckpt"
SHORT = Shortage(f"{CHECKPOINTS}/x", 500 * MIB, 3 * MIB)


def beat(world: World, host: str = "box1", *, jobs: int = 9000, checkpoints: int = 9000) -> None:
    """One heartbeat with the free MiB of both volumes."""
    volumes = (
        Volume(JOBS, jobs * MIB, 10_000 * MIB),
        Volume(CHECKPOINTS, checkpoints * MIB, 10_000 * MIB),
    )
    inventory = an_inventory(host).model_copy(update={"volumes": volumes})
    world.do(a_beat(host, inventory=inventory))


def a_world(**fields: Any) -> World:
    """One job that runs on box1."""
    world = World()
    beat(world)
    world.running(1, **fields)
    return world


def stopped(world: World, **fields: Any) -> None:
    """Its attempt met a full disk."""
    beat(world, checkpoints=3)
    world.exited(1, "failed", reason=Reason.DISK_FULL, shortage=SHORT, **fields)


def test_a_run_that_meets_a_full_disk_pauses_and_spends_no_retry() -> None:
    world = a_world(max_retries=0)
    stopped(world, message_en="The disk is full: it needs and has.")
    state = world.job(1).state
    assert (state.status, state.reason) == (S.PAUSED, Reason.DISK_FULL)
    assert state.message is not None
    assert "needs" in state.message.en
    assert state.retries_spent == 0
    assert world.job(1).run is None


@pytest.mark.parametrize(
    ("free", "status"),
    [(3, S.PAUSED), (499, S.PAUSED), (500, S.PENDING), (9000, S.PENDING)],
)
def test_it_goes_on_when_what_was_missing_is_there(free: int, status: S) -> None:
    world = a_world()
    stopped(world)
    world.pass_(60)
    assert world.job(1).state.status is S.PAUSED
    beat(world, checkpoints=free)
    world.do(Tick())
    assert world.job(1).state.status is status
    if status is S.PENDING:
        world.place()
        assert world.job(1).state.attempt == 2


def test_room_on_another_volume_is_no_room() -> None:
    world = a_world()
    stopped(world)
    beat(world, jobs=9999, checkpoints=3)
    world.do(Tick())
    assert world.job(1).state.status is S.PAUSED


def test_without_figures_every_volume_must_have_room() -> None:
    world = a_world()
    beat(world, checkpoints=3)
    world.exited(1, "failed", reason=Reason.DISK_FULL)
    beat(world, checkpoints=31)
    world.do(Tick())
    assert world.job(1).state.status is S.PAUSED
    beat(world, checkpoints=32)
    world.do(Tick())
    assert world.job(1).state.status is S.PENDING


def test_a_job_that_a_person_paused_stays_paused() -> None:
    world = a_world()
    world.request(1, JobPauseRequested)
    stopped(world)
    assert world.job(1).state.reason is Reason.USER
    beat(world)
    world.do(Tick())
    assert world.job(1).state.status is S.PAUSED


def test_a_resume_by_hand_waits_for_room_too() -> None:
    world = a_world()
    stopped(world)
    world.request(1, JobResumeRequested)
    world.place()
    assert world.job(1).state.status is S.PENDING
    assert world.job(1).run is None
    beat(world)
    world.do(Tick())
    world.place()
    assert world.job(1).run is not None


def test_it_can_be_cancelled_while_it_waits_for_room() -> None:
    world = a_world()
    stopped(world)
    world.request(1, JobCancelRequested)
    assert world.job(1).state.status is S.CANCELLED
    beat(world)
    world.do(Tick())
    assert world.job(1).state.status is S.CANCELLED


def test_a_silent_host_resumes_nothing() -> None:
    world = a_world()
    stopped(world)
    world.pass_(100)
    assert not world.state.hosts["box1"].online
    world.do(Tick())
    assert world.job(1).state.status is S.PAUSED


def test_a_disk_that_fills_again_and_again_ends_as_failed() -> None:
    world = World(setbacks_at_most=4)
    beat(world)
    world.running(1)
    for _ in range(10):
        if world.job(1).is_ended:
            break
        stopped(world)
        beat(world)
        world.do(Tick())
        world.place()
        if not world.job(1).is_ended:
            world.started(1)
    state = world.job(1).state
    assert (state.status, state.reason) == (S.FAILED, Reason.DISK_FULL)
    assert world.changes(1).count(Change.PAUSED) == 3


def test_a_host_that_refused_for_want_of_room_is_left_alone_until_it_has_it() -> None:
    world = World()
    beat(world)
    world.submit(1)
    world.place()
    refused = RunRefused(seq=1, t=0, reason=Reason.DISK_FULL, message_en="no room", shortage=SHORT)
    beat(world, checkpoints=300)
    world.fact(1, refused)
    for _ in range(20):  # the refusal's own exclusion is over; the room is what is waited for
        world.pass_(10)
        beat(world, checkpoints=300)
        world.place()
    assert world.job(1).state.status is S.PENDING
    assert world.job(1).state.reason is Reason.DISK_FULL
    assert world.job(1).run is None
    assert world.job(1).setbacks == 1
    beat(world, "box2")
    world.place()
    assert world.job(1).run is not None
    assert world.job(1).run.host == "box2"


def test_nothing_starts_on_a_full_host_and_the_reason_names_path_need_and_have() -> None:
    world = World()
    beat(world, jobs=5)
    world.submit(1)
    world.place()
    state = world.job(1).state
    assert (state.status, state.reason) == (S.PENDING, Reason.DISK_FULL)
    assert state.waiting_for is not None
    for words in (JOBS, "64.0 MiB", "4.0 MiB"):
        assert words in state.waiting_for.en
        assert words in state.waiting_for.zh
    beat(world)
    world.place()
    assert world.job(1).run is not None


def test_what_a_run_found_counts_before_the_next_heartbeat() -> None:
    world = World()
    beat(world)
    world.running(1)
    world.exited(1, "failed", reason=Reason.DISK_FULL, shortage=SHORT)
    world.submit(2)
    world.place()
    assert world.job(2).state.reason is Reason.DISK_FULL
    assert world.job(2).run is None


def test_what_a_full_host_cannot_take_says_so_and_begins_there_once_there_is_room() -> None:
    world = World()
    beat(world)
    world.submit(1)
    world.place()
    for _ in range(4):  # the agent cannot even make a folder, so it does not report the run
        beat(world, jobs=0)
        world.pass_(5)
    job = world.job(1)
    assert (job.state.status, job.state.reason) == (S.PENDING, Reason.DISK_FULL)
    assert job.state.waiting_for is not None
    assert JOBS in job.state.waiting_for.en
    assert world.changes(1).count(Change.UPDATED) == 1
    assert job.run is not None
    beat(world)
    job = world.started(1)
    assert (job.state.status, job.state.reason, job.state.attempt) == (S.RUNNING, None, 1)
