"""A link that carries one direction only: heartbeats arrive and our answers do not."""

from __future__ import annotations

from services.scheduler.core.decisions import Published
from shared.events.calls import RunReport
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus
from tests.unit.scheduler.build import World, a_beat, job_id

ALIVE = (RunReport(job=job_id(1), attempt=1, alive=True),)


def a_running_job(**fields: object) -> World:
    world = World()
    world.do(a_beat("box1", 2))
    world.running(1, **fields)
    return world


def beats(world: World, seconds: float, unanswered: float | None, instance: str = "i1") -> float:
    """Let a heartbeat come every five seconds; `unanswered`: None while answers are heard, else how long they were not."""
    end = world.seconds + seconds
    heard = 5.0 if unanswered is None else unanswered
    while world.seconds < end:
        world.pass_(5)
        heard = 5.0 if unanswered is None else heard + 5
        world.do(a_beat("box1", 2, runs=ALIVE, unanswered=heard, instance=instance))
    return heard


def reason(world: World) -> tuple[JobStatus, Reason | None]:
    state = world.job(1).state
    return state.status, state.reason


def test_a_deaf_host_is_offline_after_the_time_of_a_silent_one_until_it_hears_again() -> None:
    world = a_running_job()
    beats(world, 30, None)
    unheard = beats(world, 35, 0.0)
    assert reason(world) == (JobStatus.RUNNING, None)
    unheard = beats(world, 15, unheard)
    assert reason(world) == (JobStatus.RUNNING, Reason.DISCONNECTED)
    assert not world.state.hosts["box1"].online, "nothing new is placed there"
    unheard = beats(world, 3600, unheard)
    changes = [d for d in world.decisions if isinstance(d, Published)]
    assert sum(d.change.value == "disconnected" for d in changes) == 1
    beats(world, 5, None)
    assert reason(world) == (JobStatus.RUNNING, None)
    assert world.state.hosts["box1"].deaf_since is None


def test_a_deaf_host_that_beats_may_hold_a_lease_so_its_job_is_not_placed_again() -> None:
    world = a_running_job(disconnect_policy="stop_and_requeue")
    beats(world, 3600, 0.0)
    assert reason(world) == (JobStatus.RUNNING, Reason.DISCONNECTED)
    assert world.job(1).state.attempt == 1
    world.pass_(600 * 1.02 + 61)
    assert world.job(1).state.status is JobStatus.PENDING, "the last heartbeat is long enough ago"


def test_one_answer_lost_or_late_is_no_deafness() -> None:
    world = a_running_job()
    for unanswered in (5.0, 10.0, 5.0, 8.0, 5.0, 10.0, 15.0, 5.0) * 8:
        world.pass_(5)
        world.do(a_beat("box1", 2, runs=ALIVE, unanswered=unanswered))
        assert reason(world) == (JobStatus.RUNNING, None)


def test_silence_of_the_scheduler_itself_is_no_deafness_of_the_host() -> None:
    world = a_running_job()
    beats(world, 5, None)
    # nobody asked or answered for ten minutes: the agent says so with the first heartbeat that arrives
    world.seconds += 600
    world.do(a_beat("box1", 2, runs=ALIVE, unanswered=605.0))
    assert reason(world) == (JobStatus.RUNNING, None)
    beats(world, 60, None)
    assert reason(world) == (JobStatus.RUNNING, None)


def test_a_new_agent_counts_from_its_own_start() -> None:
    world = a_running_job()
    beats(world, 60, 0.0)
    assert reason(world) == (JobStatus.RUNNING, Reason.DISCONNECTED)
    world.pass_(1)
    world.do(a_beat("box1", 2, runs=ALIVE, instance="i2"))
    assert reason(world) == (JobStatus.RUNNING, None)


def test_an_agent_that_does_not_tell_is_taken_to_hear() -> None:
    world = a_running_job()
    for _ in range(100):
        world.pass_(5)
        world.do(a_beat("box1", 2, runs=ALIVE))
    assert reason(world) == (JobStatus.RUNNING, None)
