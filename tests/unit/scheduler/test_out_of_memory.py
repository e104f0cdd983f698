"""Attempts that run out of memory: rows of one forward pass are halved as long as there is more than one, and it is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.scheduler.codec import desired_entry, job_of, job_row
from services.scheduler.core.decisions import DesiredSet
from services.scheduler.core.out_of_memory import can_shrink, shrunk
from shared.events.calls import ControlEntry
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus
from tests.unit.scheduler.build import World, a_beat

S = JobStatus


def a_running_job(**fields: object) -> World:
    world = World()
    world.do(a_beat("box1", 2))
    world.running(1, max_retries=9, **fields)
    return world


def runs_again(world: World) -> DesiredSet:
    world.pass_(600)
    world.do(a_beat("box1", 2))
    world.place()
    return [d for d in world.decisions if isinstance(d, DesiredSet) and d.desired == "run"][-1]


@pytest.mark.parametrize("reason", [Reason.CUDA_OOM, Reason.HOST_OOM])
@pytest.mark.parametrize(("batch", "halvings"), [(1, 0), (2, 1), (3, 1), (8, 3), (9, 3)])
def test_rows_are_halved_down_to_one(reason: Reason, batch: int, halvings: int) -> None:
    world = a_running_job(batch_size=batch)
    for n in range(1, halvings + 1):
        job = world.exited(1, "failed", reason=reason, message_en="Out.", message_zh="不足。")
        assert (job.state.status, job.oom_halvings, job.state.retries_spent) == (S.PENDING, n, n)
        assert job.state.message is not None
        rows = batch >> n
        assert f"at most {rows} row" in job.state.message.en
        assert f"最多 {rows} 条" in job.state.message.zh
        assert job.state.message.en.startswith("Out. ")
        assert runs_again(world).oom_halvings == n
        world.started(1)
    failed = world.exited(1, "failed", reason=reason)
    assert (failed.state.status, failed.state.reason) == (S.FAILED, reason)
    assert failed.state.retries_spent == halvings


def test_other_failures_and_no_retries_halve_nothing() -> None:
    world = a_running_job(batch_size=8)
    assert world.exited(1, "failed", reason=Reason.KILLED).oom_halvings == 0
    world = World()
    world.do(a_beat("box1", 2))
    world.running(1, max_retries=0, batch_size=8)
    job = world.exited(1, "failed", reason=Reason.CUDA_OOM)
    assert (job.state.status, job.oom_halvings) == (S.FAILED, 0)


def test_groups_count_completions() -> None:
    config = {"algorithm": "grpo", "batch_size": 2, "rollout_n": 4, "reward_fn_type": "math_verify"}
    world = a_running_job(**config)
    assert world.job(1).micro_batch == 8
    world = a_running_job(**config | {"gradient_accumulation_steps": 4})
    assert world.job(1).micro_batch == 2


@pytest.mark.parametrize(
    ("minibatches", "accumulation", "gpus", "rows"),
    [(1, 1, 1, 16), (4, 1, 1, 4), (4, 2, 1, 2), (3, 1, 1, 6), (2, 1, 2, 4), (16, 1, 1, 2)],
)
def test_ppo_counts_a_piece_of_a_minibatch(
    minibatches: int, accumulation: int, gpus: int, rows: int
) -> None:
    world = a_running_job(
        algorithm="ppo", batch_size=4, rollout_n=4, reward_fn_type="math_verify",
        ppo_minibatches=minibatches, gradient_accumulation_steps=accumulation, num_gpus=gpus,
    )  # fmt: skip
    assert world.job(1).micro_batch == rows
    if (minibatches, accumulation) == (4, 1):
        job = world.exited(1, "failed", reason=Reason.CUDA_OOM)
        assert job.state.message is not None
        assert "at most 2 rows" in job.state.message.en


def test_the_count_is_stored_and_an_older_row_or_entry_does_without() -> None:
    world = a_running_job(batch_size=8)
    job = world.exited(1, "failed", reason=Reason.CUDA_OOM)
    row = job_row(job)
    again = job_of(row["state"], row["data"], ())
    assert (again.micro_batch, again.oom_halvings) == (8, 1)
    old = row["data"].replace('"micro_batch":8,"oom_halvings":1,', "")
    assert old != row["data"]
    unknown = job_of(row["state"], old, ())
    assert (unknown.micro_batch, unknown.oom_halvings) == (0, 0)
    entry = desired_entry(runs_again(world), {})
    assert entry.oom_halvings == 1
    bare = entry.model_dump(mode="json", exclude={"oom_halvings", "resolved"})
    assert ControlEntry.model_validate(bare).oom_halvings == 0


def test_a_job_of_an_older_version_is_halved_as_long_as_retries_last() -> None:
    world = a_running_job(batch_size=1)
    job = world.job(1)
    unknown = replace(job, micro_batch=0)
    assert can_shrink(unknown)
    assert not can_shrink(replace(unknown, oom_halvings=16))
    smaller, said = shrunk(unknown, None)
    assert smaller.oom_halvings == 1
    assert "half as many rows" in said.en
