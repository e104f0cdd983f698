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
GIVEN_UP = {"host_lost", "host_rebooted", "start_failed", "exit_unknown"}
"""Reasons for which the scheduler closes an attempt without a word of its host."""
WATCHDOG_SECONDS = 2.0
"""What two hosts may overlap after one of them was frozen."""
LOOK_SECONDS = 0.25
"""How much a measured overlap may be longer than the true one: the watcher samples."""
CLOCK_SECONDS = 0.05
"""How exactly moments that were noted by several processes of one machine are compared."""
CANCEL_SECONDS = 60.0
"""An accepted cancel has stopped the training by then, whatever was killed meanwhile."""
ENDLESS = 100_000
"""`max_steps` of jobs that are there to be cancelled: they cannot come to their end."""


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
class Overlap:
    """Attempts of one job that ran at the same moment, on one host or on several."""

    job: str
    attempts: tuple[int, ...]
    seconds: float
    across: bool = False


@dataclass(frozen=True)
class Closing:
    """An event that closed an attempt; `at` in Unix time."""

    attempt: int
    change: str
    reason: str | None
    at: float


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
    ended_at: float = 0.0
    """Unix time at which its host said that it was over."""
    confirmed: bool = True
    stored_before: tuple[int, ...] | None = None
    """What was stored when a later attempt ran and this one's host was still frozen: nothing may come to it."""
    heard_until: int | None = None
    """The last step before its host heard nothing any more and the attempt was moved; None where that was not so."""
    last_line: float = 0.0
    """Unix time of its last metric line."""
    last_alive: float = 0.0
    """Unix time at which a process of it was seen last."""


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
    cancelled_at: float | None = None
    """Unix time at which the cancel was accepted."""
    finished_at: float | None = None
    """Unix time at which the job says that it ended."""
    events: tuple[tuple[int, str, str, int], ...] = ()
    closings: tuple[Closing, ...] = ()
    attempts: tuple[AttemptSeen, ...] = ()
    checkpoints: tuple[CheckpointSeen, ...] = ()


@dataclass(frozen=True)
class Observation:
    """All that was seen once the faults were over and everything had come to rest."""

    acknowledged: tuple[str, ...]
    jobs: tuple[JobSeen, ...]
    overlaps: tuple[Overlap, ...] = ()
    never_complete: tuple[str, ...] = ()
    """Checkpoints that were listed at some time although they were never complete."""
    orphans: tuple[str, ...] = ()
    held_locks: tuple[str, ...] = ()
    unpublished: int = 0
    """Rows of the two outboxes that the broker does not have."""
    dead_letters: int = 0
    starved: float = 0.0
    """Seconds that processes were late for want of CPU."""


def check(seen: Observation) -> list[Violation]:
    """Return every broken promise, in a stable order."""
    found = _check_existence(seen)
    for job in seen.jobs:
        found += _check_ending(job) + _check_events(job) + _check_closings(job)
        found += _check_attempts(job)
        found += _check_checkpoints(job) + _check_stillness(job)
    found += [v for overlap in seen.overlaps for v in _check_overlap(overlap, seen.starved)]
    found += [Violation("checkpoint listed too early", "rest", t) for t in seen.never_complete]
    found += [Violation("orphan process", "host", text) for text in seen.orphans]
    found += [Violation("lock held", "host", text) for text in seen.held_locks]
    if seen.unpublished:
        found.append(Violation("outbox not empty", "sql", f"{seen.unpublished} rows"))
    if seen.dead_letters:
        found.append(Violation("message set aside", "sql", f"{seen.dead_letters} rows"))
    return found


def _check_overlap(overlap: Overlap, starved: float) -> list[Violation]:
    """A shim that was starved looks late, and what it stops ends late."""
    limit = WATCHDOG_SECONDS + LOOK_SECONDS + 2 * starved if overlap.across else 0.0
    if overlap.across and overlap.seconds <= limit:
        return []
    text = f"{overlap.attempts} for {overlap.seconds:.2f} s"
    return [Violation("two attempts alive at once", overlap.job, text)]


def _check_stillness(job: JobSeen) -> list[Violation]:
    """Nothing of a job lives once it has ended, and a cancelled one does not train on."""
    found = []
    for attempt in job.attempts:
        where = f"{job.uuid}.{attempt.number}"
        fenced = attempt.stored_before is not None
        if (
            job.finished_at is not None
            and attempt.last_alive > job.finished_at + CLOCK_SECONDS
            and not fenced
        ):
            text = f"{attempt.last_alive - job.finished_at:.2f} s later"
            found.append(Violation("process alive after the job's end", where, text))
        late = attempt.last_line - (job.cancelled_at or float("inf"))
        if late > CANCEL_SECONDS:
            found.append(Violation("trains on after its cancel", where, f"{late:.1f} s"))
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
    if job.max_steps >= ENDLESS:
        allowed = {"CANCELLED"}
    elif job.cancel_accepted:
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


def _check_closings(job: JobSeen) -> list[Violation]:
    """What closes an attempt is its own host's word, so it comes after that; another attempt's word does not count."""
    said = {a.number: a.ended_at for a in job.attempts}
    found = []
    for one in job.closings:
        if one.reason in GIVEN_UP or one.attempt not in said:
            continue
        early = said[one.attempt] - one.at
        if early > CLOCK_SECONDS:
            text = f"{one.change} ({one.reason}) {early:.2f} s before its host said so"
            found.append(Violation("stale fact accepted", f"{job.uuid}.{one.attempt}", text))
    return found


def _check_attempts(job: JobSeen) -> list[Violation]:
    found: list[Violation] = []
    for attempt in job.attempts:
        where = f"{job.uuid}.{attempt.number}"
        first = (attempt.resume_step or 0) + 1
        expected = tuple(range(first, first + len(attempt.logged)))
        if attempt.logged and not attempt.started:
            found.append(Violation("start not told", where, f"{len(attempt.logged)} steps"))
        elif attempt.logged != expected:
            found.append(Violation("trainer missed or doubled a step", where, str(attempt.logged)))
        if attempt.stored_before is not None:
            if attempt.stored != attempt.stored_before:
                text = f"{attempt.stored_before[-1:]} before it woke, {attempt.stored[-1:]} now"
                found.append(Violation("stale write stored", where, text))
        elif attempt.stored != attempt.logged:
            lost = sorted(set(attempt.logged) - set(attempt.stored))
            doubled = [s for s, n in Counter(attempt.stored).items() if n > 1]
            text = f"missing {lost}, doubled {doubled}, {len(attempt.stored)} stored"
            found.append(Violation("step missing or doubled", where, text))
        if attempt.resume_problem is not None:
            found.append(Violation("resumed from a bad checkpoint", where, attempt.resume_problem))
        found += _check_facts(attempt, where)
    found += _check_lost_work(job)
    reached = {s for a in job.attempts for s in a.stored} | _bridged(job)
    if job.rest == "COMPLETED" and reached != set(range(1, job.max_steps + 1)):
        lost = sorted(set(range(1, job.max_steps + 1)) - reached)
        found.append(Violation("step missing over all attempts", job.uuid, str(lost)))
    return found


def _bridged(job: JobSeen) -> set[int]:
    """Steps of a fenced attempt that only a checkpoint on a shared folder tells of: its host could not send them in time."""
    found: set[int] = set()
    for fenced in job.attempts:
        if fenced.stored_before is not None:
            resumed = [a.resume_step or 0 for a in job.attempts if a.number > fenced.number]
            found |= set(range(max(fenced.stored, default=0) + 1, max(resumed, default=0) + 1))
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
    """The checkpoint an attempt resumes from is never older than save_steps before any earlier end.

    Of a host that hears nothing what it had reached before counts: it does not know that its metrics arrive, and tells no
    checkpoint before them. What it did without answers is done again (decisions 9 and 14).
    """
    found, reached = [], 0
    for attempt in sorted(job.attempts, key=lambda a: a.number):
        if attempt.started:
            resumed = attempt.resume_step or 0
            if reached - resumed > job.save_steps:
                text = f"reached {reached}, resumed at {resumed}, save_steps {job.save_steps}"
                found.append(
                    Violation("newest checkpoint too old", f"{job.uuid}.{attempt.number}", text)
                )
        known = attempt.logged if attempt.stored_before is None else attempt.stored_before
        last = attempt.heard_until
        reached = max([reached, *(step for step in known if last is None or step <= last)])
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
