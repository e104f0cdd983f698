"""Every situation a job can be in x everything that can happen to it: nothing raises, nothing is silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from services.scheduler.core.decisions import DesiredCleared, DesiredSet, Published
from services.scheduler.core.inputs import Beat, FactArrived, HostRequestArrived, RequestArrived
from shared.events.requests import (
    HostDrainRequested,
    HostForgetRequested,
    JobCancelRequested,
    JobDeclareLostRequested,
    JobDeleteRequested,
    JobPauseRequested,
    JobPriorityRequested,
    JobResumeRequested,
    JobRetryRequested,
    JobSecretsRequested,
)
from shared.events.run import (
    RunAccepted,
    RunCheckpoint,
    RunCollected,
    RunExited,
    RunFact,
    RunRefused,
    RunStarted,
)
from shared.jobs.reasons import Reason
from tests.unit.scheduler.build import EPOCH, World, a_beat, a_submit, job_id


def a_world() -> World:
    world = World()
    world.do(a_beat("box1", 2), a_beat("box2", 2))
    return world


def waiting(world: World) -> None:
    world.submit(1, num_gpus=8)
    world.place()


def waiting_for_another(world: World) -> None:
    world.submit(2, num_gpus=8)
    world.submit(1, depends_on=[job_id(2)])
    world.place()


def assigned(world: World) -> None:
    world.submit(1)
    world.place()


def running(world: World) -> None:
    world.running(1)
    world.checkpoint(1, 20)


def backing_off(world: World) -> None:
    running(world)
    world.exited(1, "failed", reason=Reason.KILLED)
    world.place()


def silent(world: World) -> None:
    running(world)
    world.pass_(60)


def pausing(world: World) -> None:
    running(world)
    world.request(1, JobPauseRequested)


def pausing_to_resume(world: World) -> None:
    pausing(world)
    world.request(1, JobResumeRequested)


def cancelling(world: World) -> None:
    running(world)
    world.request(1, JobCancelRequested)


def cancelling_before_start(world: World) -> None:
    assigned(world)
    world.request(1, JobCancelRequested)


def draining(world: World) -> None:
    running(world)
    for host in ("box1", "box2"):
        request = HostDrainRequested(host=host, req_n=1, at=EPOCH, drained=True, stop_jobs=True)
        world.do(HostRequestArrived(request))


def paused(world: World) -> None:
    pausing(world)
    world.exited(1, "stopped", stop_cause="pause")


def completed(world: World) -> None:
    running(world)
    world.exited(1)


def failed(world: World) -> None:
    running(world)
    world.exited(1, "failed", reason=Reason.NAN_LOSS)


def cancelled(world: World) -> None:
    world.submit(1)
    world.request(1, JobCancelRequested)


def rejected(world: World) -> None:
    world.submit(1, num_gpus=-3)


def deleted(world: World) -> None:
    completed(world)
    world.request(1, JobDeleteRequested)


SITUATIONS: list[Callable[[World], None]] = [
    waiting,
    waiting_for_another,
    assigned,
    running,
    backing_off,
    silent,
    pausing,
    pausing_to_resume,
    cancelling,
    cancelling_before_start,
    draining,
    paused,
    completed,
    failed,
    cancelled,
    rejected,
    deleted,
]
REQUESTS: list[tuple[type[Any], dict[str, Any]]] = [
    (JobCancelRequested, {}),
    (JobPauseRequested, {}),
    (JobResumeRequested, {}),
    (JobRetryRequested, {}),
    (JobPriorityRequested, {"priority": 77}),
    (JobSecretsRequested, {"secret_names": ("HF_TOKEN",)}),
    (JobDeclareLostRequested, {}),
    (JobDeleteRequested, {}),
]
situations = pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.__name__)


def facts() -> list[RunFact]:
    ends: list[RunFact] = [
        RunExited(seq=9, t=0, outcome="failed", reason=reason)
        for reason in (Reason.KILLED, Reason.NAN_LOSS, Reason.HOST_REBOOTED, Reason.USER, None)
    ]
    ends += [
        RunExited(seq=9, t=0, outcome="stopped", stop_cause=cause)
        for cause in ("pause", "cancel", "drain", "requeue", "stop_metric", "time_limit", None)
    ]
    return [
        RunAccepted(seq=5, t=0),
        RunRefused(seq=5, t=0, reason=Reason.GPU_UNUSABLE, message_en="no", message_zh="否"),
        RunStarted(seq=5, t=0, pid=1, boot_id="b1", warm=True),
        RunCheckpoint(seq=5, t=0, step=40, path="/ckpt/j/checkpoint-40", best=True),
        RunCheckpoint(seq=6, t=0, step=20, path="/ckpt/j/checkpoint-20", deleted=True),
        RunExited(seq=9, t=0, outcome="completed", final_metrics={"loss": 1.0}),
        RunCollected(seq=9, t=0),
        *ends,
    ]


@situations
@pytest.mark.parametrize(("kind", "fields"), REQUESTS, ids=lambda r: getattr(r, "__name__", ""))
def test_each_request_is_answered_once(
    situation: Callable[[World], None], kind: type[Any], fields: dict[str, Any]
) -> None:
    world = a_world()
    situation(world)
    before = world.job(1).state
    one = kind(job=before.job, req_n=before.req_n + 1, at=EPOCH, **fields)
    made = world.do(RequestArrived(one))
    events = [d.state for d in made if isinstance(d, Published) and d.state.job == before.job]
    assert events, "a request is never ignored silently"
    assert {s.req_n for s in events} == {before.req_n + 1}
    assert [s.job_n for s in events] == list(
        range(before.job_n + 1, before.job_n + 1 + len(events))
    )
    changed = events[-1].model_dump(exclude={"job_n", "req_n", "note"}) != before.model_dump(
        exclude={"job_n", "req_n", "note"}
    )
    assert (
        changed
        or events[-1].note is not None
        or kind in (JobPriorityRequested, JobSecretsRequested)
    )
    assert world.do(RequestArrived(one)) != made, "a repetition is counted, not applied"
    assert world.job(1).state == events[-1]


@situations
def test_no_fact_raises_and_none_of_a_stale_attempt_counts(
    situation: Callable[[World], None],
) -> None:
    for fact in facts():
        world = a_world()
        situation(world)
        job = world.job(1)
        host = job.run.host if job.run else "box1"
        for attempt, sender in ((job.state.attempt + 3, host), (99, "box2")):
            world.do(FactArrived(sender, job.id, attempt, fact))
            assert world.job(1).state == job.state
        other = "box2" if host == "box1" else "box1"
        if job.run is not None:
            world.do(FactArrived(other, job.id, job.state.attempt, fact))
            assert world.job(1).state == job.state
        world.do(FactArrived(host, job.id, job.state.attempt, fact))
        after = world.job(1).state
        assert after.attempt == job.state.attempt
        world.do(FactArrived(host, job.id, job.state.attempt, fact))
        assert world.job(1).state == after, "the same fact twice changes nothing"


@situations
def test_hosts_may_come_and_go_at_any_time(situation: Callable[[World], None]) -> None:
    for boot_id, instance in (("b1", "i1"), ("b1", "i2"), ("b2", "i3")):
        world = a_world()
        situation(world)
        world.pass_(3700)
        world.do(a_beat("box1", 2, boot_id=boot_id, instance=instance))
        world.pass_(100_000)
        world.place()
        world.do(a_beat("box1", 0, boot_id=boot_id, instance=instance))
        forget = HostForgetRequested(host="box1", req_n=9, at=EPOCH)
        world.do(HostRequestArrived(forget))
        world.pass_(1)
        world.place()
        assert all(job.run is None or job.run.host != "box1" for job in world.state.jobs.values())


@situations
def test_desired_state_of_the_open_attempt_is_never_missing(
    situation: Callable[[World], None],
) -> None:
    world = a_world()
    situation(world)
    wanted: dict[tuple[str, str], DesiredSet | None] = {}
    for decision in world.decisions:
        if isinstance(decision, DesiredSet):
            wanted[decision.host, decision.job] = decision
        elif isinstance(decision, DesiredCleared):
            wanted[decision.host, decision.job] = None
    for job in world.state.jobs.values():
        if job.run is not None:
            entry = wanted[job.run.host, job.id]
            assert entry is not None
            assert entry.attempt == job.run.attempt
            stop = {None: "run", "pause": "pause", "cancel": "stop", "drain": "stop"}
            assert entry.desired == stop[job.state.stop_requested]


def test_unknown_job_and_forgotten_host_do_not_raise() -> None:
    world = a_world()
    world.do(
        FactArrived("box1", "unheard-of", 1, RunStarted(seq=1, t=0, pid=1, boot_id="b", warm=True))
    )
    assert world.state.hosts["box1"].stops == {"unheard-of": 1}
    world.do(HostRequestArrived(HostForgetRequested(host="ghost", req_n=1, at=EPOCH)))
    beat: Beat = a_beat("ghost", 1)
    world.do(beat)
    assert world.state.hosts["ghost"].forgotten
    assert world.state.hosts["ghost"].inventory is None
    world.do(RequestArrived(JobCancelRequested(job=job_id(7), req_n=1, at=EPOCH)))
    assert job_id(7) not in world.state.jobs
    world.do(RequestArrived(a_submit(7)))
