"""The table of a job's life: total, reachable, and folded by one function."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.events.job import JOB_EVENTS
from shared.jobs.lifecycle import TRANSITIONS, Bilingual, Change, JobState, evolve, may
from shared.jobs.reasons import Reason
from shared.jobs.status import TERMINAL, JobStatus

JOB = "0193c1f2-7a10-7c3e-9b1a-2f3d4e5f6071"


def state(status: JobStatus = JobStatus.PENDING, **fields: object) -> JobState:
    return JobState.model_validate({"job": JOB, "status": status, **fields})


@pytest.mark.parametrize(("key", "target"), TRANSITIONS.items(), ids=str)
def test_each_transition_leads_where_the_table_says(key, target) -> None:
    before = state(key[0], job_n=4)
    after = evolve(before, key[1])
    assert after.status is target
    assert after.job_n == 5
    assert after.model_copy(update={"status": before.status, "job_n": 4}) == before


@pytest.mark.parametrize("status", JobStatus)
@pytest.mark.parametrize("change", Change)
def test_what_the_table_lacks_is_refused(status: JobStatus, change: Change) -> None:
    assert may(status, change) == ((status, change) in TRANSITIONS)
    if not may(status, change):
        with pytest.raises(ValueError, match=str(change)):
            evolve(state(status), change)


def test_every_change_has_a_place_and_an_event() -> None:
    assert {c for _, c in TRANSITIONS} == set(Change)
    assert set(JOB_EVENTS) == set(Change)
    for change, event in JOB_EVENTS.items():
        assert event.model_fields["type"].default == f"job.{change}.v1"
        assert event(at=datetime.now(UTC), state=state()).change is change


def test_every_status_is_reachable_and_can_end() -> None:
    def closure(start: JobStatus) -> set[JobStatus]:
        seen, todo = {start}, [start]
        while todo:
            now = todo.pop()
            for (source, _), target in TRANSITIONS.items():
                if source is now and target not in seen:
                    seen.add(target)
                    todo.append(target)
        return seen

    assert closure(JobStatus.PENDING) == set(JobStatus)
    for status in JobStatus:
        assert closure(status) & TERMINAL


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_an_ended_job_is_left_only_by_the_user(status: JobStatus) -> None:
    leaving = {c for (s, c), t in TRANSITIONS.items() if s is status and t is not status}
    assert leaving <= {Change.RETRIED}
    assert status.is_terminal
    # A run's late word changes nothing.
    for change in (
        Change.RUNNING,
        Change.FAILED,
        Change.COMPLETED,
        Change.CANCELLED,
        Change.REQUEUED,
    ):
        assert not may(status, change)


def test_a_completed_job_stays_completed() -> None:
    assert {t for (s, _), t in TRANSITIONS.items() if s is JobStatus.COMPLETED} == {
        JobStatus.COMPLETED
    }


@pytest.mark.parametrize("status", [s for s in JobStatus if s not in TERMINAL])
def test_a_live_job_can_be_cancelled_and_is_not_deleted(status: JobStatus) -> None:
    assert may(status, Change.CANCELLED)
    assert not may(status, Change.DELETED)


def test_fields_are_set_and_checked() -> None:
    after = evolve(
        state(),
        Change.ASSIGNED,
        attempt=1,
        host="box1",
        gpus=(0, 1),
        reason=Reason.ASSIGNED,
        waiting_for=Bilingual(en="a", zh="b"),
    )
    assert (after.attempt, after.host, after.gpus, after.reason) == (
        1,
        "box1",
        (0, 1),
        Reason.ASSIGNED,
    )
    with pytest.raises(ValueError, match="attempt"):
        evolve(state(), Change.ASSIGNED, attempt="one")


@given(st.lists(st.sampled_from(list(Change)), max_size=40))
def test_folding_any_changes_keeps_numbers_dense_and_survives_the_wire(
    changes: list[Change],
) -> None:
    now, taken = state(), 0
    for change in changes:
        if may(now.status, change):
            now = evolve(now, change)
            taken += 1
        assert now.job_n == taken
        assert JobState.model_validate_json(now.model_dump_json()) == now
