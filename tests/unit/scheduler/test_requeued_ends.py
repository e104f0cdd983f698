"""A requeued attempt says how far its facts go: a reader that hears of the next attempt first still stores them."""

from __future__ import annotations

from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus
from tests.unit.scheduler.build import World, a_beat


def a_running_job() -> World:
    world = World()
    world.do(a_beat("box1", 2))
    world.running(1, max_retries=3)
    return world


def test_a_requeued_attempt_names_its_last_numbers_and_the_next_one_has_none() -> None:
    world = a_running_job()
    job = world.exited(1, "failed", reason=Reason.KILLED, last_seq={"met": 7, "run": 4})
    assert job.state.status is JobStatus.PENDING
    assert job.state.final_seq == {"met": 7, "run": 4}
    assert job.state.final_metrics is None
    world.pass_(400)
    world.do(a_beat("box1", 2))
    world.place()
    assert (world.job(1).state.attempt, world.job(1).state.final_seq) == (2, None)
