"""How an attempt ended x what the user had asked for: decided once, the same way every time."""

from __future__ import annotations

import pytest

from services.scheduler.core.decisions import DesiredCleared, DesiredSet
from services.scheduler.core.inputs import FactArrived
from shared.events.requests import (
    JobCancelRequested,
    JobDeleteRequested,
    JobPauseRequested,
    JobResumeRequested,
    JobRetryRequested,
    JobSecretsRequested,
)
from shared.events.run import RunCheckpoint, RunCollected, RunExited, RunRefused, RunStarted
from shared.jobs.lifecycle import Change
from shared.jobs.reasons import REASONS, Reason, Retry
from shared.jobs.status import JobStatus
from tests.unit.scheduler.build import World, a_beat, job_id

S = JobStatus


def a_running_job(**fields: object) -> World:
    world = World()
    world.do(a_beat("box1", 2))
    world.running(1, **fields)
    return world


def test_completed_frees_the_gpus_and_keeps_what_the_run_said() -> None:
    world = a_running_job()
    job = world.exited(1, "completed", final_metrics={"loss": 0.5, "x": None}, last_seq={"met": 7})
    assert job.state.status is S.COMPLETED
    assert job.state.final_metrics == {"loss": 0.5, "x": None}
    assert job.state.final_seq == {"met": 7}
    assert len(world.state.hosts["box1"].free) == 2
    assert job.state.finished_at is not None


@pytest.mark.parametrize(
    ("cause", "reason"),
    [("stop_metric", Reason.TARGET_REACHED), ("early_stopping", Reason.EARLY_STOPPED)],
)
def test_an_early_end_is_completed(cause: str, reason: Reason) -> None:
    for outcome in ("stopped", "completed"):
        job = a_running_job().exited(1, outcome, stop_cause=cause)
        assert (job.state.status, job.state.reason) == (S.COMPLETED, reason)


@pytest.mark.parametrize("reason", list(REASONS))
def test_verdict_of_every_reason(reason: Reason) -> None:
    world = a_running_job(max_retries=1)
    job = world.exited(1, "failed", reason=reason)
    retry = REASONS[reason].retry
    if reason in (Reason.REWARD_UNAVAILABLE, Reason.DISK_FULL):
        assert job.state.status is S.PAUSED
        return
    expected = S.FAILED if retry is Retry.NEVER else S.PENDING
    assert job.state.status is expected
    assert job.state.retries_spent == (1 if retry is Retry.SPEND else 0)
    if retry is Retry.NEVER:
        return
    world.pass_(10)
    world.place()
    world.started(1)
    again = world.exited(1, "failed", reason=reason)
    assert again.state.status is (S.FAILED if retry is Retry.SPEND else S.PENDING)


def test_retries_wait_longer_each_time_and_stop_at_the_limit() -> None:
    world = a_running_job(max_retries=3)
    waits = []
    for _ in range(3):
        world.exited(1, "failed", reason=Reason.KILLED)
        job = world.job(1)
        assert job.not_before is not None
        waits.append((job.not_before - world.now.wall).total_seconds())
        world.place()
        assert world.job(1).run is None
        assert world.job(1).state.reason is Reason.RETRY_BACKOFF
        world.pass_(waits[-1])
        world.place()
        world.started(1)
    assert waits == [2, 4, 8]
    job = world.exited(1, "failed", reason=Reason.KILLED)
    assert (job.state.status, job.state.attempt, job.state.retries_spent) == (S.FAILED, 4, 3)


def test_a_new_checkpoint_ends_the_growth_of_the_wait() -> None:
    world = a_running_job(max_retries=10)
    waits = []
    for number in range(6):
        if number >= 3:
            world.checkpoint(1, number)
        job = world.exited(1, "failed", reason=Reason.KILLED)
        assert job.not_before is not None
        waits.append((job.not_before - world.now.wall).total_seconds())
        world.pass_(waits[-1])
        world.place()
        world.started(1)
    assert waits == [2, 4, 8, 2, 2, 2]


def test_free_requeues_are_bounded_and_a_new_checkpoint_resets_the_count() -> None:
    world = a_running_job()
    for number in range(200):
        job = world.exited(1, "failed", reason=Reason.HOST_REBOOTED)
        if job.is_ended:
            break
        world.pass_(400)
        world.do(a_beat("box1", 2))
        world.place()
        world.started(1)
        if number < 20:
            world.checkpoint(1, number + 1)
    assert world.job(1).state.status is S.FAILED
    assert world.job(1).state.attempt == 20 + 50


@pytest.mark.parametrize(
    ("outcome", "cause", "status", "reason"),
    [
        ("completed", None, S.COMPLETED, Reason.CANCEL_TOO_LATE),
        ("stopped", "cancel", S.CANCELLED, Reason.USER),
        ("stopped", "pause", S.CANCELLED, Reason.USER),
        ("failed", None, S.CANCELLED, Reason.USER),
    ],
)
def test_cancel_meets_every_ending(
    outcome: str, cause: str | None, status: JobStatus, reason: Reason
) -> None:
    world = a_running_job()
    job = world.request(1, JobCancelRequested)
    assert (job.state.status, job.state.stop_requested) == (S.RUNNING, "cancel")
    job = world.exited(
        1, outcome, stop_cause=cause, reason=Reason.KILLED if outcome == "failed" else None
    )
    assert (job.state.status, job.state.reason, job.state.stop_requested) == (status, reason, None)
    world.request(1, JobCancelRequested)
    assert world.job(1).state.status is status


def test_cancel_after_completed_is_too_late() -> None:
    world = a_running_job()
    world.exited(1)
    job = world.request(1, JobCancelRequested)
    assert (job.state.status, job.state.reason) == (S.COMPLETED, Reason.CANCEL_TOO_LATE)


def test_cancel_before_the_start_wins_against_refused_and_started() -> None:
    world = World()
    world.do(a_beat("box1", 1))
    world.submit(1)
    world.place()
    world.request(1, JobCancelRequested)
    job = world.started(1)
    assert (job.state.status, job.state.reason) == (S.RUNNING, Reason.STOPPING)
    world.submit(2)
    world.exited(1, "stopped", stop_cause="cancel")
    world.place()
    world.request(2, JobCancelRequested)
    job = world.fact(2, RunRefused(seq=1, t=0, reason=Reason.GPU_UNUSABLE))
    assert job.state.status is S.CANCELLED


def test_pause_and_resume_spend_no_retry() -> None:
    world = a_running_job(max_retries=0)
    world.checkpoint(1, 20)
    world.request(1, JobPauseRequested)
    job = world.exited(1, "stopped", stop_cause="pause")
    assert (job.state.status, job.state.gpus, job.state.host) == (S.PAUSED, (), None)
    world.place()
    assert world.job(1).state.status is S.PAUSED
    world.request(1, JobResumeRequested)
    world.place()
    job = world.job(1)
    assert (job.state.attempt, job.state.retries_spent) == (2, 0)
    desired = [d for d in world.decisions if isinstance(d, DesiredSet)]
    assert [(d.desired, d.stop_mode, d.resume) for d in desired] == [
        ("run", None, False),
        ("pause", "pause", False),
        ("run", None, True),
    ]


def test_resume_during_a_pause_goes_on_afterwards_and_a_second_pause_takes_it_back() -> None:
    world = a_running_job()
    world.request(1, JobPauseRequested)
    world.request(1, JobResumeRequested)
    job = world.exited(1, "stopped", stop_cause="pause")
    assert job.state.status is S.PENDING
    assert world.changes(1)[-2:] == [Change.PAUSED, Change.RESUMED]
    world = a_running_job()
    for kind in (JobPauseRequested, JobResumeRequested, JobPauseRequested):
        world.request(1, kind)
    assert world.exited(1, "stopped", stop_cause="pause").state.status is S.PAUSED


def test_pausing_run_that_fails_follows_the_verdict() -> None:
    world = a_running_job(max_retries=1)
    world.request(1, JobPauseRequested)
    job = world.exited(1, "failed", reason=Reason.CUDA_OOM)
    assert (job.state.status, job.state.retries_spent) == (S.PAUSED, 1)
    world = a_running_job(max_retries=0)
    world.request(1, JobPauseRequested)
    assert world.exited(1, "failed", reason=Reason.CUDA_OOM).state.status is S.FAILED


def test_retry_reopens_with_a_fresh_budget_and_the_newest_checkpoint() -> None:
    world = a_running_job(max_retries=0)
    world.checkpoint(1, 20)
    world.exited(1, "failed", reason=Reason.KILLED, message_en="killed", message_zh="被终止")
    job = world.request(1, JobRetryRequested)
    assert (job.state.status, job.state.retries_spent, job.state.message) == (S.PENDING, 0, None)
    assert (job.state.finished_at, job.state.final_metrics) == (None, None)
    world.place()
    last = [d for d in world.decisions if isinstance(d, DesiredSet)][-1]
    assert (last.attempt, last.resume) == (2, True)


def test_time_limit_fails_and_can_be_retried() -> None:
    world = a_running_job()
    job = world.exited(1, "stopped", stop_cause="time_limit")
    assert (job.state.status, job.state.reason) == (S.FAILED, Reason.TIME_LIMIT)


def test_a_stale_attempt_is_counted_and_its_host_told_to_stop() -> None:
    world = a_running_job()
    world.exited(1, "failed", reason=Reason.KILLED)
    world.pass_(10)
    world.do(a_beat("box2", 2))
    world.place()
    job = world.started(1)
    assert job.state.attempt == 2
    other = "box2" if job.state.host == "box1" else "box1"
    late = RunCheckpoint(seq=50, t=0, step=60, path="/ckpt/x/checkpoint-60")
    made = world.do(FactArrived(other, job.id, 1, late))
    assert world.job(1).state == job.state
    stops = [d for d in made if isinstance(d, DesiredSet)]
    assert [(d.host, d.attempt, d.desired) for d in stops] == [(other, 1, "stop")]
    gone = RunExited(seq=51, t=0, outcome="completed")
    made = world.do(FactArrived(other, job.id, 1, gone))
    assert DesiredCleared(other, job.id) in made
    assert world.job(1).state == job.state


def test_a_higher_attempt_than_known_raises_the_next_number() -> None:
    world = a_running_job()
    job = world.job(1)
    fact = RunStarted(seq=1, t=0, pid=1, boot_id="b1", warm=False)
    world.do(FactArrived("box2", job.id, 7, fact))
    assert world.job(1).state.attempt == 1
    world.exited(1, "stopped", stop_cause="drain")
    world.place()
    assert world.job(1).state.attempt == 8


def test_checkpoints_newest_fact_wins_and_a_repetition_brings_nothing_back() -> None:
    world = a_running_job()
    world.checkpoint(1, 20, best=True)
    world.checkpoint(1, 40, best=True, last=True)
    marks = {c.step: (c.best, c.last) for c in world.job(1).checkpoints}
    assert marks == {20: (False, False), 40: (True, True)}
    again = RunCheckpoint(seq=2, t=0, step=20, path="/p/checkpoint-20", best=True)
    gone = RunCheckpoint(seq=9, t=0, step=20, path="/p/checkpoint-20", deleted=True)
    world.fact(1, gone)
    before = world.job(1)
    world.fact(1, again)
    assert world.job(1) == before
    assert before.state.last_step == 40
    assert before.state.checkpoint_dir == f"/ckpt/{job_id(1)}"


def test_delete_leaves_a_tombstone_and_collects_on_every_host() -> None:
    world = a_running_job()
    assert world.request(1, JobDeleteRequested).state.note is not None
    world.exited(1)
    world.submit(2, depends_on=[job_id(1)], num_gpus=64)
    assert not world.request(1, JobDeleteRequested).state.deleted
    world.request(2, JobCancelRequested)
    job = world.request(1, JobDeleteRequested)
    assert (job.state.deleted, job.state.status) == (True, S.COMPLETED)
    collect = [d for d in world.decisions if isinstance(d, DesiredSet)][-1]
    assert (collect.host, collect.desired) == ("box1", "collect")
    made = world.do(FactArrived("box1", job.id, 1, RunCollected(seq=9, t=0)))
    assert made == [DesiredCleared("box1", job.id)]


@pytest.mark.parametrize(
    ("outcome", "cause"), [("stopped", "pause"), ("stopped", "cancel"), ("failed", None)]
)
def test_a_cancel_during_a_pause_is_told_to_the_host_and_wins(
    outcome: str, cause: str | None
) -> None:
    world = a_running_job()
    world.request(1, JobPauseRequested)
    world.request(1, JobResumeRequested)
    world.request(1, JobCancelRequested)
    told = [d for d in world.decisions if isinstance(d, DesiredSet)][-1]
    assert (told.desired, told.stop_mode) == ("stop", "cancel")
    fields = {"stop_cause": cause} if cause else {"reason": Reason.KILLED}
    job = world.exited(1, outcome, **fields)
    assert (job.state.status, job.state.reason) == (S.CANCELLED, Reason.USER)
    assert job.state.stop_requested is None


def test_secrets_named_later_reach_the_attempts_that_start_later() -> None:
    world = a_running_job(max_retries=3)
    assert _secret_names(world) == ()
    world.request(1, JobSecretsRequested, secret_names=("HF_TOKEN", "A", "HF_TOKEN"))
    assert _secret_names(world) == ()
    world.exited(1, "failed", reason=Reason.KILLED)
    world.pass_(10)
    world.place()
    assert world.job(1).state.attempt == 2
    assert _secret_names(world) == ("A", "HF_TOKEN")
    world.exited(1, "failed", reason=Reason.NAN_LOSS)
    world.request(1, JobSecretsRequested, secret_names=())
    world.request(1, JobRetryRequested)
    world.place()
    assert world.job(1).state.attempt == 3
    assert _secret_names(world) == ()


def _secret_names(world: World) -> tuple[str, ...]:
    """Return what the newest order to run tells the host to fetch."""
    runs = [d for d in world.decisions if isinstance(d, DesiredSet) and d.desired == "run"]
    return runs[-1].secret_names
