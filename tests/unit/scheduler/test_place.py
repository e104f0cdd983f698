"""Where jobs go, and in which words the others are told why they wait."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.scheduler.codec import desired_entry
from services.scheduler.core.decisions import DesiredSet
from services.scheduler.core.feasible import is_type
from services.scheduler.core.inputs import HostRequestArrived, RequestArrived
from services.scheduler.core.place import schedule
from shared.events.requests import (
    HostDrainRequested,
    JobDeclareLostRequested,
    JobPriorityRequested,
    JobRetryRequested,
)
from shared.events.run import RunRefused
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus
from tests.unit.scheduler.build import EPOCH, World, a_beat, a_config, a_submit, job_id


def told(world: World, number: int) -> str:
    state = world.job(number).state
    assert state.waiting_for is not None
    assert state.waiting_for.zh
    return state.waiting_for.en


def drain(world: World, host: str, n: int = 1, drained: bool = True, **fields: Any) -> None:
    request = HostDrainRequested(host=host, req_n=n, at=EPOCH, drained=drained, **fields)
    world.do(HostRequestArrived(request))


def host_of(world: World, number: int) -> str | None:
    run = world.job(number).run
    return run.host if run else None


def test_words_of_every_kind_of_waiting() -> None:
    world = World()
    world.submit(1, num_gpus=2)
    world.place()
    assert told(world, 1) == "no agent online"
    world.do(a_beat("box1", 1))
    world.submit(2, gpu_type="H100")
    world.submit(3, host="nowhere")
    world.submit(4, depends_on=[job_id(1)])
    world.submit(5, depends_on=[job_id(99)])
    world.do(RequestArrived(a_submit(6).model_copy(update={"gpu_memory_mib": 200_000})))
    world.place()
    assert told(world, 1) == "needs 2 GPUs, largest free host has 1"
    assert world.job(1).state.reason is Reason.NOT_ENOUGH_GPUS
    assert told(world, 2) == "no online host has gpu_type H100; there is NVIDIA A100-SXM4-80GB"
    assert told(world, 3) == "host nowhere is not known"
    assert told(world, 4) == "waits for job job1"
    assert told(world, 5) == f"waits for job {job_id(99)}"
    assert told(world, 6) == "needs 195 GiB of GPU memory, largest GPU has 80 GiB"
    drain(world, "box1")
    world.submit(7)
    world.submit(8, host="box1-label")
    world.place()
    assert told(world, 7) == "every online host is drained"
    assert told(world, 8) == "host box1-label is drained"
    world.pass_(60)
    world.submit(9, host="box1")
    world.place()
    assert told(world, 9) == "host box1-label is offline"
    assert set(world.state.queue.standing) == {job_id(n) for n in range(1, 10)}
    assert set(schedule(world.state, world.now).waiting) == set(world.state.queue.standing)


def test_a_dependency_that_never_appears_ends_the_wait() -> None:
    world = World()
    world.submit(1, depends_on=[job_id(99)])
    world.pass_(700)
    assert world.job(1).state.status is JobStatus.CANCELLED
    assert world.job(1).state.reason is Reason.DEPENDENCY_FAILED


def test_priority_then_age_and_a_changed_priority_moves_a_waiting_job() -> None:
    world = World()
    for number, priority in ((1, 10), (2, 50), (3, 50)):
        world.submit(number, priority=priority)
    world.request(1, JobPriorityRequested, priority=90)
    world.do(a_beat("box1", 1))
    world.place()
    assert [host_of(world, n) for n in (1, 2, 3)] == ["box1", None, None]
    world.started(1)
    world.exited(1)
    world.place()
    assert [host_of(world, n) for n in (2, 3)] == ["box1", None]


@pytest.mark.parametrize(
    ("wanted", "name", "yes"),
    [
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("a10", "NVIDIA A100-SXM4-80GB", False),
        ("rtx4090", "NVIDIA GeForce RTX 4090", True),
        ("RTX 4090", "NVIDIA GeForce RTX 4090", True),
        ("L4", "NVIDIA L40S", False),
        ("H100 80GB", "NVIDIA H100 80GB HBM3", True),
        ("-", "NVIDIA H100", False),
    ],
)
def test_gpu_type_matches_whole_words(wanted: str, name: str, yes: bool) -> None:
    assert is_type(wanted, name) is yes


def test_best_fit_leaves_large_hosts_and_large_gpus_free() -> None:
    world = World()
    world.do(a_beat("big", 8), a_beat("small", 2), a_beat("tiny", 1, memory=24_000))
    world.submit(1)
    world.place()
    assert host_of(world, 1) == "tiny"
    world.submit(2, num_gpus=2)
    world.submit(3)
    world.place()
    assert host_of(world, 2) == "small"
    assert host_of(world, 3) == "big"
    world = World()
    world.do(a_beat("big", 1), a_beat("tiny", 4, memory=24_000))
    world.do(RequestArrived(a_submit(1).model_copy(update={"gpu_memory_mib": 20_000})))
    world.do(RequestArrived(a_submit(2).model_copy(update={"gpu_memory_mib": 40_000})))
    world.place()
    assert host_of(world, 1) == "tiny"
    assert host_of(world, 2) == "big"


def test_out_of_memory_goes_to_a_larger_gpu_where_there_is_one() -> None:
    world = World()
    world.do(a_beat("a", 1, memory=24_000), a_beat("b", 4, memory=80_000))
    world.running(1)
    assert host_of(world, 1) == "a"
    world.exited(1, "failed", reason=Reason.CUDA_OOM)
    world.pass_(10)
    world.place()
    assert host_of(world, 1) == "b"


def test_cpu_slot_takes_one_gpu_of_no_type_only_and_gpus_come_first() -> None:
    world = World()
    cpu = {"device": "cpu", "name": "cpu", "memory": 0}
    world.do(a_beat("laptop", 2, **cpu))
    world.submit(1)
    world.submit(2, gpu_type="A100")
    world.submit(3, num_gpus=2)
    world.submit(4)
    world.place()
    assert [host_of(world, n) for n in (1, 2, 3, 4)] == ["laptop", None, None, "laptop"]
    assert told(world, 3) == "needs 2 GPUs, largest free host has 0"
    world = World()
    world.do(a_beat("laptop", 3, **cpu))
    world.submit(1, num_gpus=2, host="laptop")  # cores are meant: the host is named
    world.submit(2, num_gpus=2, host="laptop")
    world.place()
    assert host_of(world, 1) == "laptop"
    assert told(world, 2) == "needs 2 GPUs, largest free host has 1"
    world = World()
    world.do(a_beat("laptop", 1, **cpu), a_beat("box", 1))
    world.submit(1)
    world.place()
    assert host_of(world, 1) == "box"


def test_foreign_and_held_gpus_are_not_given() -> None:
    world = World()
    beat = a_beat("box1", 3)
    inventory = beat.heartbeat.inventory
    first, second, third = inventory.gpus
    held = (
        first.model_copy(update={"held_by": "foreign"}),
        second.model_copy(update={"held_by": "some-job"}),
        third,
    )
    inventory = inventory.model_copy(update={"gpus": held})
    world.do(a_beat("box1", inventory=inventory))
    world.submit(1)
    world.submit(2)
    world.place()
    assert world.job(1).state.gpus == (2,)
    assert told(world, 2) == "needs 1 GPU, largest free host has 0"


def test_a_large_job_keeps_a_host_and_small_ones_fill_the_others() -> None:
    world = World()
    world.do(a_beat("a", 4), a_beat("b", 2))
    world.running(1, num_gpus=2, host="a")
    world.submit(2, num_gpus=4)
    for number in range(3, 9):
        world.submit(number)
    world.place()
    assert world.state.reservations == {job_id(2): "a"}
    placed = [host_of(world, n) for n in range(3, 9)]
    assert placed == ["b", "b", None, None, None, None]
    assert told(world, 5) == "GPUs of a-label are kept for job2, which is ahead of it"
    assert world.job(5).state.reason is Reason.QUEUED_BEHIND
    world.exited(1)
    world.place()
    assert host_of(world, 2) == "a"
    assert world.state.reservations == {job_id(3 + 2): "a"}


def test_a_higher_priority_may_use_a_kept_host() -> None:
    world = World()
    world.do(a_beat("a", 2))
    world.running(1)
    world.submit(2, num_gpus=2)
    world.place()
    world.submit(3, priority=99)
    world.place()
    assert host_of(world, 3) == "a"


def test_a_pinned_job_does_not_take_the_place_of_a_large_one() -> None:
    world = World()
    world.do(a_beat("a", 2), a_beat("b", 2))
    world.running(1, num_gpus=2, host="a")
    world.running(2, host="b")
    world.submit(3, host="a")
    world.submit(4, num_gpus=2)
    world.submit(5)
    world.place()
    assert world.state.reservations == {job_id(3): "a", job_id(4): "b"}
    assert host_of(world, 5) is None


def test_a_refusing_host_is_left_alone_for_a_while() -> None:
    world = World()
    world.do(a_beat("a", 1))
    world.submit(1)
    world.place()
    refused = RunRefused(seq=1, t=0, reason=Reason.GPU_UNUSABLE, message_en="busy", message_zh="忙")
    world.fact(1, refused)
    world.place()
    job = world.job(1)
    assert (job.state.attempt, job.state.retries_spent, job.run) == (1, 0, None)
    assert told(world, 1) == "a-label refused it a moment ago; it is asked again soon"
    world.do(a_beat("b", 1))
    world.place()
    assert (host_of(world, 1), world.job(1).state.attempt) == ("b", 2)
    world.fact(1, refused)
    world.pass_(20)
    world.place()
    assert host_of(world, 1) == "a"


def test_a_resumed_job_goes_where_its_checkpoint_is_and_waits_for_it() -> None:
    world = World()
    world.do(a_beat("a", 1), a_beat("b", 1))
    world.running(1, host="a")
    world.checkpoint(1, 0)
    world.checkpoint(1, 20)
    job = world.job(1)
    world.state = replace(
        world.state,
        jobs={**world.state.jobs, job.id: replace(job, demand=replace(job.demand, pin=None))},
    )
    drain(world, "a", stop_jobs=True)
    world.exited(1, "stopped", stop_cause="drain")
    world.place()
    state = world.job(1).state
    assert (state.status, state.retries_spent, state.reason) == (
        JobStatus.PENDING,
        0,
        Reason.CHECKPOINT_ELSEWHERE,
    )
    assert told(world, 1) == "checkpoint on a-label (host a-label is drained)"
    world.request(1, JobDeclareLostRequested)
    assert host_of(world, 1) is None, "the host is online, so its checkpoint still binds"
    drain(world, "a", 2, drained=False)
    world.place()
    assert (host_of(world, 1), world.job(1).state.attempt) == ("a", 2)


def test_step_zero_binds_nobody_and_a_shared_folder_frees() -> None:
    world = World()
    world.do(a_beat("a", 1, shared=["/mnt/nfs"]), a_beat("b", 1, shared=["/mnt/nfs"]))
    world.running(1)
    world.checkpoint(1, 0)
    drain(world, "a", stop_jobs=True)
    world.exited(1, "stopped", stop_cause="drain")
    world.place()
    assert host_of(world, 1) == "b"
    world.started(1)
    world.checkpoint(1, 20, "/mnt/nfs")
    drain(world, "b", stop_jobs=True)
    world.exited(1, "stopped", stop_cause="drain")
    drain(world, "a", 2, drained=False)
    world.place()
    assert host_of(world, 1) == "a"


def test_every_parameter_that_names_a_checkpoint_is_frozen_to_a_folder() -> None:
    world = World()
    world.do(a_beat("box1", 4))
    for number in (1, 2, 3):
        world.running(number)
        world.checkpoint(number, 10, last=True)
        world.exited(number)
    config = a_config(
        algorithm="grpo",
        model_path=f"job:{job_id(1)}",
        ref_model_path=f"job:{job_id(2)}@10",
        rewards=[
            {"name": "right", "reward_fn_type": "math_verify"},
            {"name": "nice", "reward_model_type": "model", "reward_model_path": f"job:{job_id(3)}"},
        ],
    )
    world.submit(4, **config)
    world.place()
    folders = {n: f"/ckpt/{job_id(n)}/checkpoint-10" for n in (1, 2, 3)}
    (wanted,) = [d for d in world.decisions if isinstance(d, DesiredSet) and d.job == job_id(4)]
    assert wanted.model_path == folders[1]
    found = desired_entry(wanted, config).config
    assert found["ref_model_path"] == folders[2]
    assert found["rewards"][0] == config["rewards"][0]
    assert found["rewards"][1] == config["rewards"][1] | {"reward_model_path": folders[3]}
    assert config["rewards"][1]["reward_model_path"] == f"job:{job_id(3)}", "what is stored stays"


def test_a_job_waits_for_the_job_whose_reward_model_a_component_uses() -> None:
    world = World()
    world.do(a_beat("box1", 4))
    world.running(1)
    component = {"name": "m", "reward_model_type": "model", "reward_model_path": f"job:{job_id(1)}"}
    world.submit(2, algorithm="grpo", rewards=[component])
    world.place()
    assert world.job(2).run is None
    assert told(world, 2) == "waits for job job1"


def test_model_of_another_job_freezes_to_a_folder_and_its_host() -> None:
    world = World()
    world.do(a_beat("a", 1), a_beat("b", 4))
    world.running(1, host="a")
    world.checkpoint(1, 20, best=True)
    world.checkpoint(1, 40, last=True)
    world.submit(2, model_path=f"job:{job_id(1)}@best")
    world.submit(3, model_path=f"job:{job_id(1)}")
    world.submit(4, model_path=f"job:{job_id(1)}@30")
    world.place()
    assert told(world, 2) == "waits for job job1"
    world.exited(1)
    world.place()
    assert world.job(2).state.model_path == f"/ckpt/{job_id(1)}/checkpoint-20"
    assert host_of(world, 2) == "a"
    assert told(world, 3) == "checkpoint on a-label (needs 1 GPU, largest free host has 0)"
    failed = world.job(4).state
    assert (failed.status, failed.reason) == (JobStatus.FAILED, Reason.MODEL_MISSING)
    assert failed.message is not None
    assert "20, 40" in failed.message.en


def test_dependents_of_a_failed_job_are_cancelled_and_retried_apart() -> None:
    world = World()
    world.do(a_beat("a", 1))
    world.running(1)
    world.submit(2, depends_on=[job_id(1)])
    world.submit(3, depends_on=[job_id(2)])
    world.exited(1, "failed", reason=Reason.NAN_LOSS)
    assert [world.job(n).state.status for n in (2, 3)] == [JobStatus.CANCELLED] * 2
    assert world.job(3).state.reason is Reason.DEPENDENCY_FAILED
    world.request(1, JobRetryRequested)
    assert world.job(2).state.status is JobStatus.CANCELLED
    world.request(3, JobRetryRequested)
    assert world.job(3).state.status is JobStatus.CANCELLED, "job 2 has not been retried"
    world.request(2, JobRetryRequested)
    world.request(3, JobRetryRequested)
    world.place()
    assert [world.job(n).state.status for n in (1, 2, 3)] == [JobStatus.PENDING] * 3
    assert host_of(world, 1) == "a"
    assert told(world, 2) == "waits for job job1"


def test_a_job_cannot_wait_for_itself() -> None:
    world = World()
    world.submit(1, depends_on=[job_id(2)])
    world.submit(2, depends_on=[job_id(1)])
    state = world.job(2).state
    assert (state.status, state.reason) == (JobStatus.FAILED, Reason.CONFIG_INVALID)
    assert world.job(1).state.reason is Reason.DEPENDENCY_FAILED


def test_waiting_reasons_are_renewed_a_few_at_a_time_head_first() -> None:
    world = World()
    world.do(a_beat("a", 2))
    for number in range(1, 101):
        world.submit(number, num_gpus=4)
    world.place()
    assert told(world, 100) == "needs 4 GPUs, largest free host has 2"
    world.do(a_beat("a", 3))
    made = len(world.decisions)
    world.place()
    assert sum(type(d).__name__ == "Published" for d in world.decisions[made:]) == 64
    assert told(world, 1) == "needs 4 GPUs, largest free host has 3"
    assert told(world, 100) == "needs 4 GPUs, largest free host has 2"
    world.place()
    assert told(world, 100) == "needs 4 GPUs, largest free host has 3"
