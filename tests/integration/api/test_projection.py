"""Streams applied to rows: again, out of order, from a stale attempt, from a foreign host."""

from __future__ import annotations

import random

import pytest
from sqlmodel import select

from services.api.db.tables import AttemptRow, CheckpointRow, HostRow, JobEventRow, JobRow
from services.api.projections.main import apply_main
from shared.events.job import JOB_EVENTS, HostUpdated
from shared.events.run import RunCheckpoint, RunExited, RunFactBase, RunStarted
from shared.jobs.lifecycle import Change, JobState
from shared.jobs.reasons import Reason
from shared.jobs.resources import HostInventory
from shared.jobs.status import JobStatus
from tests.integration.api.yard import ApiYard, now

pytestmark = [pytest.mark.integration]
J = "00000000-0000-7000-8000-000000000001"


def started(seq: int = 1) -> RunFactBase:
    return RunStarted(seq=seq, t=1.0, pid=7, boot_id="b", warm=True)


def exited(seq: int = 2) -> RunFactBase:
    return RunExited(seq=seq, t=2.0, outcome="completed", last_seq={"met": 9})


def attempt(yard: ApiYard, number: int) -> AttemptRow:
    (row,) = yard.rows(select(AttemptRow).where(AttemptRow.attempt == number))
    assert isinstance(row, AttemptRow)
    return row


async def test_the_newest_state_wins_in_any_order(both: ApiYard) -> None:
    changes = [
        Change.QUEUED,
        Change.ASSIGNED,
        Change.RUNNING,
        Change.CHECKPOINTED,
        Change.COMPLETED,
    ]
    statuses = [JobStatus.PENDING, JobStatus.PENDING, JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.COMPLETED]  # fmt: skip
    items = []
    for n, (change, status) in enumerate(zip(changes, statuses, strict=True), 1):
        host = None if n == 1 else "h1"
        state = JobState(job=J, job_n=n, status=status, attempt=int(n > 1), host=host, req_n=1)
        event = JOB_EVENTS[change].model_validate({"at": now(), "state": state.model_dump()})
        items.append(both.item("JOBS", f"job.{J}", event))
    shuffled = items * 3
    random.Random(7).shuffle(shuffled)
    await both.main.write(lambda session: apply_main(session, "JOBS", shuffled))
    (row,) = both.rows(select(JobRow))
    assert (row.job_n, row.status, row.answered_n) == (5, "COMPLETED", 1)
    assert len(both.rows(select(JobEventRow))) == 5
    assert attempt(both, 1).host == "h1"


async def test_facts_are_stored_once_and_without_gaps(both: ApiYard) -> None:
    uuid = (await both.submit())["uuid"]
    await both.tell(uuid, started())
    assert both.rows(select(AttemptRow)) == []
    await both.say(Change.ASSIGNED, uuid, host="h1", attempt=1)
    await both.tell(uuid, exited(seq=2))
    assert attempt(both, 1).last_run_seq == 0
    await both.tell(uuid, started(), host="h2")
    assert attempt(both, 1).last_run_seq == 0
    for _ in range(2):
        await both.tell(uuid, started())
        await both.tell(uuid, exited())
    row = attempt(both, 1)
    assert (row.last_run_seq, row.outcome, row.final_seq) == (2, "completed", {"met": 9, "run": 2})


async def test_a_zombie_is_fenced_and_a_late_truth_is_not(both: ApiYard) -> None:
    uuid = (await both.submit())["uuid"]
    await both.say(Change.ASSIGNED, uuid, host="h1", attempt=1)
    # Given up while its host was silent: nothing tells how far its facts go.
    await both.say(Change.REQUEUED, uuid, reason=Reason.HOST_LOST, host=None)
    await both.say(Change.ASSIGNED, uuid, host="h2", attempt=2)
    await both.tell(uuid, started(), host="h1", attempt=1)
    assert attempt(both, 1).last_run_seq == 0
    # Ended properly, its facts only come late.
    await both.say(Change.REQUEUED, uuid, host="h2", attempt=2, final_seq={"run": 2, "met": 9})
    await both.say(Change.ASSIGNED, uuid, host="h1", attempt=3, final_seq=None)
    await both.tell(uuid, started(), host="h2", attempt=2)
    await both.tell(uuid, exited(), host="h2", attempt=2)
    assert attempt(both, 2).outcome == "completed"


async def test_what_is_told_late_counts_where_the_next_attempt_follows_on_the_same_host(
    both: ApiYard,
) -> None:
    uuid = (await both.submit())["uuid"]
    await both.say(Change.ASSIGNED, uuid, host="h1", attempt=1)
    await both.say(Change.REQUEUED, uuid, reason=Reason.HOST_LOST, host=None)
    await both.say(Change.ASSIGNED, uuid, host="h1", attempt=2)
    await both.tell(uuid, started(), host="h1", attempt=1)
    assert attempt(both, 1).last_run_seq == 1
    await both.say(Change.REQUEUED, uuid, reason=Reason.HOST_LOST, host=None)
    await both.say(Change.ASSIGNED, uuid, host="h2", attempt=3)
    await both.tell(uuid, exited(), host="h1", attempt=1)
    assert attempt(both, 1).last_run_seq == 1, "now it is a zombie's"


def checkpoint(seq: int, step: int, root: str, *, deleted: bool = False) -> RunFactBase:
    path = f"{root}/checkpoint-{step}"
    return RunCheckpoint(seq=seq, t=1.0, step=step, path=path, deleted=deleted)


async def test_a_folder_is_gone_only_where_it_was(both: ApiYard) -> None:
    uuid = (await both.submit())["uuid"]
    await both.say_host("h2", 1, online=True)
    (host,) = both.rows(select(HostRow))
    inventory = HostInventory.model_validate({**host.inventory, "shared_paths": ["/shared"]})
    event = HostUpdated(
        at=now(), host="h2", host_n=host.host_n + 1, label="b", online=True, drained=False,
        inventory=inventory,
    )  # fmt: skip
    await both.apply("JOBS", "host.h2", event)
    await both.say(Change.ASSIGNED, uuid, host="h1", attempt=1)
    for seq, (step, root) in enumerate([(4, "/own"), (8, "/shared"), (12, "/own")], 1):
        await both.tell(uuid, checkpoint(seq, step, root))
    await both.say(Change.ASSIGNED, uuid, host="h2", attempt=2)
    for seq, (step, root) in enumerate([(4, "/own"), (8, "/shared")], 1):
        await both.tell(uuid, checkpoint(seq, step, root, deleted=True), host="h2", attempt=2)
    await both.say(Change.ASSIGNED, uuid, host="h1", attempt=3)
    await both.tell(uuid, checkpoint(1, 12, "", deleted=True), host="h1", attempt=3)
    found = {r.step: r.deleted for r in both.rows(select(CheckpointRow))}
    assert found == {4: False, 8: True, 12: True}


async def test_a_deleted_job_keeps_only_its_tombstone(both: ApiYard) -> None:
    uuid = (await both.submit())["uuid"]
    await both.say(Change.ASSIGNED, uuid, host="h1", attempt=1)
    await both.tell(uuid, started())
    await both.say(Change.COMPLETED, uuid, status=JobStatus.COMPLETED)
    await both.say(Change.DELETED, uuid, deleted=True)
    await both.tell(uuid, exited())
    assert both.rows(select(AttemptRow)) == both.rows(select(JobEventRow)) == []
    (row,) = both.rows(select(JobRow))
    assert row.deleted_at is not None
    assert row.config == {}


async def test_a_deletion_told_twice_among_others_leaves_only_the_tombstone(both: ApiYard) -> None:
    items = []
    done = {"status": JobStatus.COMPLETED, "attempt": 1, "host": "h1", "final_seq": {"run": 2}}
    for n, (change, fields) in enumerate(
        [(Change.QUEUED, {}), (Change.COMPLETED, done), (Change.DELETED, {**done, "deleted": True})]
    ):
        state = JobState.model_validate({"job": J, "job_n": n + 1, "req_n": n + 1} | fields)
        event = JOB_EVENTS[change].model_validate({"at": now(), "state": state.model_dump()})
        items.append(both.item("JOBS", f"job.{J}", event))
    await both.main.write(lambda session: apply_main(session, "JOBS", items * 2))
    (row,) = both.rows(select(JobRow))
    assert (row.job_n, row.deleted_at is not None, row.config) == (3, True, {})
    assert both.rows(select(JobEventRow)) == both.rows(select(AttemptRow)) == []


async def test_an_older_word_about_a_host_changes_nothing(both: ApiYard) -> None:
    n = 1_795_320_614_664  # as the scheduler numbers them: it grows with the clock, in milliseconds
    await both.say_host("h1", n, online=False)
    await both.say_host("h1", n - 1, online=True)
    (row,) = both.rows(select(HostRow))
    assert (row.host_n, row.online, row.inventory["device"]) == (n, False, "cuda")
    event = HostUpdated(at=now(), host="h1", host_n=n + 1, label="b", online=True, drained=True)
    await both.apply("JOBS", "host.h1", event)
    (row,) = both.rows(select(HostRow))
    assert (row.label, row.drained, row.inventory["device"]) == ("b", True, "cuda")
