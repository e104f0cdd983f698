"""Silent hosts, returning ones, rebooted ones, second agents, zombies: by the boot clock, never by the wall's."""

from __future__ import annotations

from dataclasses import replace

from services.scheduler.core.decisions import CheckpointSaved, DesiredCleared, DesiredSet, HostSaved
from services.scheduler.core.inputs import Tick
from services.scheduler.core.leases import held, refusal, reply
from services.scheduler.core.state import ClusterState, Moment
from services.scheduler.core.step import steps
from shared.events.calls import HeldRun, RunReport
from shared.events.requests import JobCancelRequested, JobDeclareLostRequested, JobPauseRequested
from shared.jobs.lifecycle import Change
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus
from tests.unit.scheduler.build import World, a_beat, job_id, moment

S = JobStatus


def a_running_job(**fields: object) -> World:
    world = World()
    world.do(a_beat("box1", 2))
    world.running(1, **fields)
    return world


def alive(attempt: int = 1) -> list[RunReport]:
    return [RunReport(job=job_id(1), attempt=attempt, alive=True)]


def test_silence_is_seen_after_ttl_drift_and_grace_and_undone_by_a_heartbeat() -> None:
    world = a_running_job()
    world.pass_(35.5)
    assert world.job(1).state.reason is None
    world.pass_(0.2)
    job = world.job(1)
    assert (job.state.status, job.state.reason) == (S.RUNNING, Reason.DISCONNECTED)
    world.place()
    assert len(world.state.hosts["box1"].runs) == 1, "nothing is reassigned"
    world.do(a_beat("box1", 2, runs=alive()))
    assert world.job(1).state.reason is None
    assert world.changes(1)[-2:] == [Change.DISCONNECTED, Change.RECONNECTED]


def test_a_wall_clock_that_jumps_changes_nothing() -> None:
    world = a_running_job()
    state = world.state
    for hours in (-5, 5):
        jumped = Moment(moment(hours * 3600).wall, moment(10).boot)
        state, made = steps(state, (Tick(),), jumped)
        assert made == ()
        assert state.hosts["box1"].online


def test_keep_waits_a_day_then_the_host_is_lost() -> None:
    world = a_running_job()
    world.checkpoint(1, 20)
    world.pass_(23 * 3600)
    assert world.job(1).state.status is S.RUNNING
    world.pass_(3700)
    job = world.job(1)
    assert (job.state.status, job.state.retries_spent) == (S.PENDING, 0)
    world.do(a_beat("box2", 1))
    world.place()
    job = world.job(1)
    assert (job.state.host, job.state.attempt) == ("box2", 2)
    zombie = a_beat("box1", 2, runs=alive())
    made = world.do(zombie)
    assert job.run is not None
    assert world.state.hosts["box1"].stops == {job_id(1): 1}
    assert not [d for d in made if isinstance(d, DesiredCleared)]
    made = world.do(a_beat("box1", 2))
    assert DesiredCleared("box1", job_id(1)) in made


def test_stop_and_requeue_waits_for_the_shims_deadline_and_more() -> None:
    world = a_running_job(disconnect_policy="stop_and_requeue")
    begun = world.seconds
    world.pass_(600 * 1.02 + 60)
    assert world.job(1).state.status is S.RUNNING
    world.pass_(0.5)
    assert world.seconds - begun > 600 * 1.02 + 30 + 30
    job = world.job(1)
    assert (job.state.status, job.state.reason) == (S.PENDING, Reason.HOST_LOST)
    stop = [d for d in world.decisions if isinstance(d, DesiredSet)][-1]
    assert (stop.host, stop.attempt, stop.desired) == ("box1", 1, "stop")


def test_no_wall_clock_gives_away_what_the_shim_stops_by_its_boot_clock() -> None:
    for policy, waits in (("stop_and_requeue", False), ("keep", True)):
        state = a_running_job(disconnect_policy=policy).state
        jumped = Moment(moment(25 * 3600).wall, moment(36).boot)
        state, _ = steps(state, (Tick(),), jumped)
        assert state.hosts["box1"].lost
        assert state.jobs[job_id(1)].waits is waits
        late = Moment(jumped.wall, moment(600 * 1.02 + 61).boot)
        state, _ = steps(state, (Tick(),), late)
        assert state.jobs[job_id(1)].waits


def test_a_heartbeat_is_stored_at_once_when_the_stored_one_is_old() -> None:
    world = a_running_job()
    world.seconds = 5
    assert not [d for d in world.do(a_beat("box1", 2, runs=alive())) if isinstance(d, HostSaved)]
    box = world.state.hosts["box1"]
    found = Moment(moment(-23 * 3600).wall, moment(5).boot)
    world.state = replace(world.state, hosts={"box1": replace(box, seen=found)})
    world.seconds = 10
    (saved,) = (d for d in world.do(a_beat("box1", 2, runs=alive())) if isinstance(d, HostSaved))
    assert saved.host.seen == moment(10)
    world.seconds = 15
    assert not [d for d in world.do(a_beat("box1", 2, runs=alive())) if isinstance(d, HostSaved)]


def test_user_says_the_host_is_lost() -> None:
    for wanted, status in (
        (None, S.PENDING),
        (JobCancelRequested, S.CANCELLED),
        (JobPauseRequested, S.PAUSED),
    ):
        world = a_running_job()
        job = world.request(1, JobDeclareLostRequested)
        assert job.state.note is not None, "its host is online"
        world.pass_(60)
        if wanted is not None:
            world.request(1, wanted)
        job = world.request(1, JobDeclareLostRequested)
        assert job.state.status is status
        assert job.run is None


def test_lost_host_no_longer_binds_checkpoints_and_a_silent_one_does() -> None:
    world = a_running_job(disconnect_policy="stop_and_requeue")
    world.checkpoint(1, 20)
    world.pass_(700)
    world.do(a_beat("box2", 1))
    world.place()
    state = world.job(1).state
    assert state.waiting_for is not None
    assert state.waiting_for.en == "checkpoint on box1-label (host box1-label is offline)"
    world.request(1, JobDeclareLostRequested)
    world.place()
    assert world.job(1).state.host == "box2"


def test_a_reboot_gives_the_agent_time_to_tell_then_requeues_free() -> None:
    world = a_running_job(max_retries=0)
    world.seconds = 10
    world.do(a_beat("box1", 2, boot_id="b1"))
    world.seconds = 60
    world.do(a_beat("box1", 2, boot_id="b2", instance="i2"))
    world.pass_(29)
    assert world.job(1).state.status is S.RUNNING
    world.pass_(2)
    job = world.job(1)
    assert (job.state.status, job.state.reason, job.state.retries_spent) == (
        S.PENDING,
        Reason.HOST_REBOOTED,
        0,
    )


def test_a_run_that_its_live_host_does_not_know_ends_after_ten_minutes() -> None:
    world = a_running_job(max_retries=1)
    for _ in range(61):
        world.seconds += 10
        world.do(a_beat("box1", 2), Tick())
    assert world.job(1).state.status is S.RUNNING
    world.seconds += 10
    world.do(a_beat("box1", 2), Tick())
    assert (world.job(1).state.status, world.job(1).state.reason) == (
        S.PENDING,
        Reason.EXIT_UNKNOWN,
    )
    world = a_running_job()
    for _ in range(100):
        world.seconds += 10
        world.do(a_beat("box1", 2, runs=alive()), Tick())
    assert world.job(1).state.status is S.RUNNING


def test_an_assignment_that_its_host_never_takes_is_fenced() -> None:
    world = World()
    world.do(a_beat("box1", 1))
    world.submit(1)
    world.place()
    for _ in range(70):
        world.seconds += 10
        world.do(a_beat("box1", 1), Tick())
    job = world.job(1)
    assert (job.state.status, job.run) == (S.PENDING, None)
    stop = [d for d in world.decisions if isinstance(d, DesiredSet)][-1]
    assert (stop.desired, stop.attempt) == ("stop", 1)


def test_a_lease_names_the_attempts_that_stay_the_hosts_while_it_runs() -> None:
    world = World()
    world.do(a_beat("box1", 1))
    world.submit(1)
    world.place()
    mine = (HeldRun(job=job_id(1), attempt=1),)
    for _ in range(56):
        world.seconds += 10
        world.do(a_beat("box1", 1), Tick())
        assert held(world.state, "box1", world.now) == mine
    world.seconds += 20
    world.do(a_beat("box1", 1), Tick())
    assert world.job(1).run is not None, "it is still the host's"
    assert held(world.state, "box1", world.now) == (), "but not for another 30 s"
    assert held(world.state, "box9", world.now) == ()


def test_a_fenced_attempt_is_named_no_more_although_its_key_may_still_say_run() -> None:
    world = a_running_job(disconnect_policy="stop_and_requeue")
    assert held(world.state, "box1", world.now) == (HeldRun(job=job_id(1), attempt=1),)
    world.pass_(673)
    assert world.job(1).run is None
    world.do(a_beat("box1", 2))
    assert held(world.state, "box1", world.now) == ()


def test_a_run_is_over_only_by_what_its_host_says_not_by_its_silence() -> None:
    world = World()
    world.do(a_beat("box1", 1))
    world.submit(1)
    world.place()
    for _ in range(60):
        world.seconds += 10
        world.do(a_beat("box1", 1), Tick())
    world.pass_(20)
    assert world.job(1).run is not None, "it may have begun after the last heartbeat"
    world.do(a_beat("box1", 1), Tick())
    assert world.job(1).run is None


def test_identity() -> None:
    world = World()
    world.do(a_beat("box1", 1))
    world.seconds = 5
    restarted = a_beat("box1", 1, instance="i2")
    assert refusal(world.state, restarted, world.now) is None, "the same boot: the agent restarted"
    clone = a_beat("box1", 1, instance="i9", boot_id="other")
    answer = reply(world.state, clone, world.now, "e1", 3)
    assert (answer.ok, answer.error) == (False, "identity_in_use")
    world.do(clone)
    assert world.state.hosts["box1"].instance == "i1"
    world.do(restarted)
    assert world.state.hosts["box1"].instance == "i2"
    first = refusal(world.state, a_beat("box1", 1), world.now)
    assert first is not None, "the replaced instance speaks again: a second agent"
    world.seconds = 60
    assert refusal(world.state, clone, world.now) is None, "the lease ended"
    answer = reply(ClusterState(), a_beat("new", 1), world.now, "", 1)
    assert (answer.ok, answer.ctl_epoch) == (True, "")


def test_a_late_heartbeat_of_a_dead_agent_does_not_shut_its_successor_out() -> None:
    world = World()
    world.do(a_beat("box1", 1, instance="i1", began=100))
    world.seconds = 5
    world.do(a_beat("box1", 1, instance="i3", began=130))
    late = a_beat("box1", 1, instance="i2", began=120)
    assert not reply(world.state, late, world.now, "e1", 3).ok
    world.do(late)
    present = a_beat("box1", 1, instance="i3", began=130)
    assert refusal(world.state, present, world.now) is None
    world.do(present)
    assert world.state.hosts["box1"].instance == "i3"
    world.seconds = 100
    rebooted = a_beat("box1", 1, instance="i4", boot_id="b2", began=20)
    assert refusal(world.state, rebooted, world.now) is None, "another boot counts anew"


def test_gpus_of_a_silent_host_are_not_given() -> None:
    world = World()
    world.do(a_beat("box1", 1))
    world.pass_(100)
    world.submit(1)
    world.place()
    state = world.job(1).state
    assert state.waiting_for is not None
    assert state.waiting_for.en == "no agent online"
    host = world.state.hosts["box1"]
    assert replace(host, online=True).free != ()


def test_a_folder_that_hosts_share_is_one_place_whoever_speaks_of_it() -> None:
    world = World()
    for box in ("box1", "box2"):
        world.do(a_beat(box, 2, shared=["/ckpt"]))
    world.running(1, disconnect_policy="stop_and_requeue")
    first = world.job(1).state.host
    world.checkpoint(1, 4)
    other = "box2" if first == "box1" else "box1"
    while (run := world.job(1).run) is not None and run.host == first:
        world.seconds += 10
        world.do(a_beat(other, 2, shared=["/ckpt"]))
        world.pass_(1)
        world.place()
    world.place()
    started = [d for d in world.decisions if isinstance(d, DesiredSet) and d.desired == "run"][-1]
    assert (started.host, started.resume, started.checkpoints) == (other, True, (4,))
    world.checkpoint(1, 4, deleted=True)
    world.checkpoint(1, 8)
    job = world.job(1)
    assert [(c.step, c.host) for c in job.checkpoints if not c.deleted] == [(8, other)]
    saved = {
        (d.checkpoint.step, d.checkpoint.host): d.checkpoint.deleted
        for d in world.decisions
        if isinstance(d, CheckpointSaved)
    }
    assert saved == {(4, first): True, (4, other): True, (8, other): False}
