"""The checker reports every planted violation, and nothing where nothing is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.faults.checker import (
    ENDLESS,
    AttemptSeen,
    CheckpointSeen,
    Closing,
    JobSeen,
    Observation,
    Overlap,
    check,
)

EVENTS = (
    (1, "queued", "PENDING", 0),
    (2, "assigned", "PENDING", 1),
    (3, "running", "RUNNING", 1),
    (4, "requeued", "PENDING", 1),
    (5, "assigned", "PENDING", 2),
    (6, "running", "RUNNING", 2),
    (7, "completed", "COMPLETED", 2),
)
FIRST = AttemptSeen(1, logged=(1, 2, 3, 4, 5), stored=(1, 2, 3, 4, 5))
SECOND = AttemptSeen(2, logged=(5, 6, 7, 8), stored=(5, 6, 7, 8), resume_step=4)
GOOD_JOB = JobSeen(
    "job", "COMPLETED", "COMPLETED", "COMPLETED", max_steps=8, save_steps=4, events=EVENTS,
    attempts=(FIRST, SECOND), checkpoints=(CheckpointSeen(4, "4"), CheckpointSeen(8, "8")),
)  # fmt: skip
GOOD = Observation(("job",), (GOOD_JOB,))


def with_job(**changes: Any) -> Observation:
    return replace(GOOD, jobs=(replace(GOOD_JOB, **changes),))


def with_second(**changes: Any) -> Observation:
    return with_job(attempts=(FIRST, replace(SECOND, **changes)))


def with_event(n: int, *event: Any) -> Observation:
    return with_job(events=tuple(event if e[0] == n else e for e in EVENTS))


PLANTED: dict[str, tuple[Observation, str]] = {
    "closed by another attempt's word": (
        with_job(
            closings=(Closing(1, "requeued", "drained", 100.0),),
            attempts=(replace(FIRST, ended_at=101.0), SECOND),
        ),
        "stale fact accepted",
    ),
    "lost job": (replace(GOOD, jobs=()), "acknowledged job is gone"),
    "doubled submit": (replace(GOOD, acknowledged=()), "job nobody was told of"),
    "missing step": (with_second(stored=(5, 6, 8)), "step missing or doubled"),
    "doubled step": (with_second(stored=(5, 6, 6, 7, 8)), "step missing or doubled"),
    "step the trainer skipped": (
        with_second(logged=(5, 7, 8), stored=(5, 7, 8)),
        "trainer missed or doubled a step",
    ),
    "start that nobody told": (with_second(started=False), "start not told"),
    "a step that no checkpoint tells of": (
        with_job(
            attempts=(
                replace(FIRST, stored=(1, 2, 3), stored_before=(1, 2, 3)),
                replace(SECOND, stored=(6, 7, 8), logged=(6, 7, 8), resume_step=4),
            )
        ),
        "step missing over all attempts",
    ),
    "whole attempt not stored": (with_second(stored=()), "step missing over all attempts"),
    "two terminal events": (
        with_job(events=(*EVENTS, (8, "failed", "FAILED", 2))),
        "not exactly one terminal event",
    ),
    "no terminal event": (with_job(events=EVENTS[:-1]), "not exactly one terminal event"),
    "other terminal event": (with_event(7, 7, "failed", "FAILED", 2), "terminal event differs"),
    "event lost": (with_job(events=EVENTS[:3] + EVENTS[4:]), "event missing or doubled"),
    "stale fact": (with_event(6, 6, "running", "RUNNING", 1), "stale fact accepted"),
    "attempt reused": (with_event(5, 5, "assigned", "PENDING", 1), "attempt not fenced"),
    "assigned while another is open": (
        with_event(4, 4, "checkpointed", "RUNNING", 1),
        "attempt not fenced",
    ),
    "never ended": (with_job(rest="RUNNING"), "not ended"),
    "sides differ": (with_job(scheduler_sql="FAILED"), "status differs"),
    "failed without a cause": (
        with_job(rest="FAILED", api_sql="FAILED", scheduler_sql="FAILED"),
        "wrong ending",
    ),
    "cancel forgotten": (with_job(cancel_accepted=True), "wrong ending"),
    "two trees": (
        replace(GOOD, overlaps=(Overlap("job", (1, 2), 0.0),)),
        "two attempts alive at once",
    ),
    "two hosts for longer than a tick": (
        replace(GOOD, overlaps=(Overlap("job", (1, 2), 2.5, across=True),)),
        "two attempts alive at once",
    ),
    "a frozen host's writes count": (
        with_job(attempts=(replace(FIRST, stored_before=(1, 2, 3, 4)), SECOND)),
        "stale write stored",
    ),
    "a process outlives its job": (
        with_job(finished_at=100.0, attempts=(FIRST, replace(SECOND, last_alive=100.1))),
        "process alive after the job's end",
    ),
    "a cancelled job trains on": (
        with_job(
            cancel_accepted=True,
            reason="cancel_too_late",
            cancelled_at=100.0,
            attempts=(FIRST, replace(SECOND, last_line=161.0)),
        ),
        "trains on after its cancel",
    ),
    "a job without end completes": (with_job(max_steps=ENDLESS), "wrong ending"),
    "a cut save was listed for a while": (
        replace(GOOD, never_complete=("job step 6",)),
        "checkpoint listed too early",
    ),
    "orphan": (replace(GOOD, orphans=("17 trainer",)), "orphan process"),
    "held lock": (replace(GOOD, held_locks=("slot-0",)), "lock held"),
    "outbox": (replace(GOOD, unpublished=1), "outbox not empty"),
    "dead letter": (replace(GOOD, dead_letters=1), "message set aside"),
    "unverifiable checkpoint": (
        with_job(checkpoints=(*GOOD_JOB.checkpoints, CheckpointSeen(6, "6", "differs"))),
        "listed checkpoint is bad",
    ),
    "last checkpoint absent": (
        with_job(checkpoints=GOOD_JOB.checkpoints[:1]),
        "no checkpoint of the last step",
    ),
    "old checkpoint": (
        with_second(resume_step=0, logged=tuple(range(1, 9)), stored=tuple(range(1, 9))),
        "newest checkpoint too old",
    ),
    "bad resume": (with_second(resume_problem="cut short"), "resumed from a bad checkpoint"),
    "two exits": (
        with_second(facts=("accepted", "exited", "exited")),
        "not exactly one last fact",
    ),
    "fact lost": (with_second(fact_numbers=(1, 2, 4)), "fact numbers not dense"),
    "spool open": (with_second(confirmed=False), "spool not confirmed"),
}


def test_a_sound_run_has_no_violation() -> None:
    assert check(GOOD) == []


def test_a_cancel_that_came_too_late_is_no_violation() -> None:
    assert check(with_job(cancel_accepted=True, reason="cancel_too_late")) == []


def test_two_hosts_may_overlap_by_one_tick_after_a_pause() -> None:
    assert check(replace(GOOD, overlaps=(Overlap("job", (1, 2), 1.9, across=True),))) == []


def test_what_a_frozen_host_wrote_and_nobody_stored_is_no_violation() -> None:
    """Not even where the next attempt builds on a checkpoint that it left on a shared folder."""
    first = replace(FIRST, stored=(1, 2, 3), stored_before=(1, 2, 3))
    assert check(with_job(attempts=(first, SECOND))) == []


@pytest.mark.parametrize(("heard_until", "rules"), [(1, set()), (5, {"newest checkpoint too old"})])
def test_what_a_deaf_host_did_without_answers_may_be_done_again(
    heard_until: int, rules: set[str]
) -> None:
    whole = tuple(range(1, 9))
    first = replace(FIRST, stored_before=FIRST.stored, heard_until=heard_until)
    second = replace(SECOND, resume_step=0, logged=whole, stored=whole)
    assert {v.rule for v in check(with_job(attempts=(first, second)))} == rules


@pytest.mark.parametrize("planted", PLANTED)
def test_every_planted_violation_is_reported(planted: str) -> None:
    seen, rule = PLANTED[planted]
    assert rule in {v.rule for v in check(seen)}
