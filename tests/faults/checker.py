"""Judges what was seen of a stack after faults: pure, so that planted violations can prove it.

`observing.observe` fills an `Observation` from REST, SQL, disk and the process table; `check` names every broken promise.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

TERMINAL = {"COMPLETED", "FAILED", "CANCELLED"}
ENDINGS = {
    "completed": "COMPLETED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
    "rejected": "FAILED",
}
CLOSES_ATTEMPT = {*ENDINGS, "requeued", "paused"}


@dataclass(frozen=True)
class Violation:
    """One broken promise: a short name, where, and what was seen."""

    rule: str
    where: str
    seen: str


@dataclass(frozen=True)
class CheckpointSeen:
    """One checkpoint that the api lists; `problem` is what its manifest or its loading says against it."""

    step: int
    path: str
    problem: str | None = None


@dataclass(frozen=True)
class AttemptSeen:
    """One attempt: what the trainer wrote on the host, and what the api has stored of it."""

    number: int
    logged: tuple[int, ...] = ()
    """Steps of the metric lines in `events.jsonl`, in file order."""
    stored: tuple[int, ...] = ()
    """Steps in the telemetry database, in the order stored."""
    started: bool = True
    resume_step: int | None = None
    resume_problem: str | None = None
    """What is wrong with the checkpoint that it resumed from, as it was on disk when the attempt began to use it."""
    facts: tuple[str, ...] = ("accepted", "started", "exited")
    fact_numbers: tuple[int, ...] = (1, 2, 3)
    confirmed: bool = True


@dataclass(frozen=True)
class JobSeen:
    """One job from every side. `events` are (job_n, change, status, attempt) in order."""

    uuid: str
    rest: str
    api_sql: str
    scheduler_sql: str
    max_steps: int
    save_steps: int
    reason: str | None = None
    cancel_accepted: bool = False
    events: tuple[tuple[int, str, str, int], ...] = ()
    attempts: tuple[AttemptSeen, ...] = ()
    checkpoints: tuple[CheckpointSeen, ...] = ()


@dataclass(frozen=True)
class Observation:
    """All that was seen once the faults were over and everything had come to rest."""

    acknowledged: tuple[str, ...]
    jobs: tuple[JobSeen, ...]
    overlaps: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """(job, attempts) of which trainers were alive at the same moment."""
    orphans: tuple[str, ...] = ()
    held_locks: tuple[str, ...] = ()
    unpublished: int = 0
    """Rows of the two outboxes that the broker does not have."""
    dead_letters: int = 0


def check(seen: Observation) -> list[Violation]:
    """Return every broken promise, in a stable order."""
    found = _check_existence(seen)
    for job in seen.jobs:
        found += _check_ending(job) + _check_events(job) + _check_attempts(job)
        found += _check_checkpoints(job)
    found += [Violation("two attempts alive at once", job, str(n)) for job, n in seen.overlaps]
    found += [Violation("orphan process", "host", text) for text in seen.orphans]
    found += [Violation("lock held", "host", text) for text in seen.held_locks]
    if seen.unpublished:
        found.append(Violation("outbox not empty", "sql", f"{seen.unpublished} rows"))
    if seen.dead_letters:
        found.append(Violation("message set aside", "sql", f"{seen.dead_letters} rows"))
    return found


def _check_existence(seen: Observation) -> list[Violation]:
    there = Counter(job.uuid for job in seen.jobs)
    found = [
        Violation("acknowledged job is gone", uuid, "not in the list")
        for uuid in seen.acknowledged
        if uuid not in there
    ]
    unasked = set(there) - set(seen.acknowledged)
    found += [Violation("job nobody was told of", uuid, "a doubled submit") for uuid in unasked]
    return found


def _check_ending(job: JobSeen) -> list[Violation]:
    found = []
    sides = {job.rest, job.api_sql, job.scheduler_sql}
    if len(sides) != 1:
        text = f"REST {job.rest}, api {job.api_sql}, scheduler {job.scheduler_sql}"
        found.append(Violation("status differs", job.uuid, text))
    if job.rest not in TERMINAL:
        found.append(Violation("not ended", job.uuid, f"{job.rest} ({job.reason})"))
    allowed = {"COMPLETED"}
    if job.cancel_accepted:
        allowed = {"CANCELLED"} if job.reason != "cancel_too_late" else {"COMPLETED"}
    if job.rest in TERMINAL and job.rest not in allowed:
        found.append(Violation("wrong ending", job.uuid, f"{job.rest} ({job.reason})"))
    return found


def _check_events(job: JobSeen) -> list[Violation]:
    found = []
    numbers = [n for n, _, _, _ in job.events]
    if numbers != list(range(1, len(numbers) + 1)):
        found.append(Violation("event missing or doubled", job.uuid, str(numbers)))
    endings = [change for _, change, _, _ in job.events if change in ENDINGS]
    if len(endings) != 1:
        found.append(Violation("not exactly one terminal event", job.uuid, str(endings)))
    elif ENDINGS[endings[0]] != job.rest:
        found.append(Violation("terminal event differs", job.uuid, f"{endings[0]}, {job.rest}"))
    attempt, is_open = 0, False
    for n, change, _, number in job.events:
        if change == "assigned":
            if number != attempt + 1 or is_open:
                found.append(
                    Violation("attempt not fenced", job.uuid, f"event {n}: {attempt} -> {number}")
                )
            attempt, is_open = number, True
        elif number != attempt or (change == "running" and not is_open):
            found.append(
                Violation("stale fact accepted", job.uuid, f"event {n}: {change} {number}")
            )
        if change in CLOSES_ATTEMPT:
            is_open = False
    return found


def _check_attempts(job: JobSeen) -> list[Violation]:
    found: list[Violation] = []
    for attempt in job.attempts:
        where = f"{job.uuid}.{attempt.number}"
        first = (attempt.resume_step or 0) + 1
        expected = tuple(range(first, first + len(attempt.logged)))
        if attempt.logged != expected:
            found.append(Violation("trainer missed or doubled a step", where, str(attempt.logged)))
        if attempt.stored != attempt.logged:
            lost = sorted(set(attempt.logged) - set(attempt.stored))
            doubled = [s for s, n in Counter(attempt.stored).items() if n > 1]
            text = f"missing {lost}, doubled {doubled}, {len(attempt.stored)} stored"
            found.append(Violation("step missing or doubled", where, text))
        if attempt.resume_problem is not None:
            found.append(Violation("resumed from a bad checkpoint", where, attempt.resume_problem))
        found += _check_facts(attempt, where)
    found += _check_lost_work(job)
    reached = {s for a in job.attempts for s in a.stored}
    if job.rest == "COMPLETED" and reached != set(range(1, job.max_steps + 1)):
        lost = sorted(set(range(1, job.max_steps + 1)) - reached)
        found.append(Violation("step missing over all attempts", job.uuid, str(lost)))
    return found


def _check_facts(attempt: AttemptSeen, where: str) -> list[Violation]:
    found = []
    last = [f for f in attempt.facts if f in ("exited", "refused")]
    if len(last) != 1 or attempt.facts[-1] != last[0]:
        found.append(Violation("not exactly one last fact", where, str(attempt.facts)))
    if attempt.fact_numbers != tuple(range(1, len(attempt.facts) + 1)):
        found.append(Violation("fact numbers not dense", where, str(attempt.fact_numbers)))
    if not attempt.confirmed:
        found.append(Violation("spool not confirmed", where, "the api lacks a part of it"))
    return found


def _check_lost_work(job: JobSeen) -> list[Violation]:
    """The checkpoint an attempt resumes from is never older than save_steps before any earlier end."""
    found, reached = [], 0
    for attempt in sorted(job.attempts, key=lambda a: a.number):
        if attempt.started:
            resumed = attempt.resume_step or 0
            if reached - resumed > job.save_steps:
                text = f"reached {reached}, resumed at {resumed}, save_steps {job.save_steps}"
                found.append(
                    Violation("newest checkpoint too old", f"{job.uuid}.{attempt.number}", text)
                )
        reached = max([reached, *attempt.logged])
    return found


def _check_checkpoints(job: JobSeen) -> list[Violation]:
    found = [
        Violation("listed checkpoint is bad", f"{job.uuid} step {c.step}", c.problem)
        for c in job.checkpoints
        if c.problem is not None
    ]
    steps = [c.step for c in job.checkpoints]
    if len(set(steps)) != len(steps):
        found.append(Violation("checkpoint listed twice", job.uuid, str(steps)))
    if job.rest == "COMPLETED" and job.max_steps not in steps:
        found.append(Violation("no checkpoint of the last step", job.uuid, str(steps)))
    return found
