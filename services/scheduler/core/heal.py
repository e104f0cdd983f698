"""A restored database catches up with what the streams still tell: pure, and repeating it changes nothing.

JOBS says in whole states what was decided since the backup, REQUESTS holds the configurations, RUNS the checkpoints,
and `ctl` what each host was told last. Nothing is decided anew that was decided before: numbers of events, of
attempts and of requests go on above the highest that anybody has heard of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from services.scheduler.core.decisions import AttemptSaved, ConfigSaved, Decision
from services.scheduler.core.draft import Draft
from services.scheduler.core.endings import Ending, settle
from services.scheduler.core.facts import merge_checkpoint
from services.scheduler.core.requests import ask_to_stop_again
from services.scheduler.core.state import ClusterState, Host, Job, Moment, Phase, Run
from services.scheduler.core.submit import recall
from shared.events.calls import ControlEntry
from shared.events.job import HostUpdated
from shared.events.requests import (
    JobPauseRequested,
    JobRequest,
    JobResumeRequested,
    JobSecretsRequested,
    JobSubmitRequested,
)
from shared.events.run import RunCheckpoint
from shared.jobs.lifecycle import Bilingual, Change, JobState
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus

Key = tuple[str, str]
"""Host and job."""
_UNTOLD = Ending(
    "lost",
    Reason.START_FAILED,
    Bilingual(
        en="the host was not told of the run before the scheduler's database was restored",
        zh="在恢复调度器数据库之前，主机尚未收到这次运行的通知",
    ),
)
_NO_CONFIG = Bilingual(
    en="it was submitted after the backup that was restored, and its configuration is lost; submit it again",
    zh="该任务在所恢复的备份之后提交，其配置已丢失，请重新提交",
)


@dataclass(frozen=True, slots=True)
class Fact:
    """A checkpoint as its host announced it."""

    host: str
    job: str
    attempt: int
    fact: RunCheckpoint


@dataclass(frozen=True)
class Evidence:
    """What the streams still hold; empty parts where a stream was made anew."""

    states: Mapping[str, JobState] = field(default_factory=dict)
    """Newest state of each job in JOBS."""
    placed: Mapping[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)
    """Job → (attempt, host) of each assignment in JOBS."""
    requests: tuple[JobRequest, ...] = ()
    """In the order of REQUESTS."""
    checkpoints: tuple[Fact, ...] = ()
    """In the order of RUNS."""
    hosts: tuple[HostUpdated, ...] = ()
    """The last word about each host."""
    told: Mapping[Key, ControlEntry] | None = None
    """What `ctl` says; None where it is not to be trusted."""


@dataclass(frozen=True)
class Healed:
    """The outcome: the next state and decisions, and which keys of `ctl` stay as they are."""

    state: ClusterState
    decisions: tuple[Decision, ...]
    kept: Mapping[Key, ControlEntry]
    caught_up: tuple[str, ...]
    """Jobs of which the database knew less."""
    new: tuple[str, ...]
    """Jobs of which it knew nothing."""
    unconfigured: tuple[str, ...]
    """Of these, jobs whose configuration is nowhere; they have failed, where they had not ended."""


def mentioned(evidence: Evidence) -> frozenset[str]:
    """Return the jobs that must be in memory before `heal`."""
    told = evidence.told or {}
    asked = {request.job for request in evidence.requests}
    return frozenset({*evidence.states, *asked, *(job for _, job in told)})


def heal(
    state: ClusterState, evidence: Evidence, desired: Mapping[Key, ControlEntry], now: Moment
) -> Healed:
    """Catch up; `desired` is what the restored database wants of each host."""
    draft = Draft(state, now, passive=True)
    for word in evidence.hosts:
        if draft.host(word.host) is None and not word.forgotten:
            draft.put_host(_joined(word))
    by_job: dict[str, list[JobRequest]] = {}
    for request in evidence.requests:
        by_job.setdefault(request.job, []).append(request)
    order = dict.fromkeys([*by_job, *sorted(evidence.states)])
    caught_up, new, unconfigured = [], [], []
    for job_id in order:
        told = evidence.states.get(job_id)
        known = draft.job(job_id)
        if told is None or (known is not None and known.state.job_n >= told.job_n):
            continue
        if known is None:
            known, has_config = _learnt(draft, told, by_job.get(job_id, []), evidence)
            new.append(job_id)
            if not has_config:
                unconfigured.append(job_id)
        caught_up.append(job_id)
        _catch_up(draft, known, told, by_job.get(job_id, []), evidence)
    for one in evidence.checkpoints:
        _keep_checkpoint(draft, one, evidence)
    for job_id in unconfigured:
        _give_up(draft, job_id)
    kept = _agree(draft, evidence, desired) if evidence.told is not None else dict(desired)
    state, decisions = draft.finish()
    return Healed(state, decisions, kept, tuple(caught_up), tuple(new), tuple(unconfigured))


def _joined(word: HostUpdated) -> Host:
    """Return a host that joined after the backup; its next heartbeat brings the rest."""
    return Host(word.host, word.label, word.inventory, drained=word.drained)


def _learnt(
    draft: Draft, told: JobState, requests: list[JobRequest], evidence: Evidence
) -> tuple[Job, bool]:
    """Return a job that the database never heard of, and whether its configuration was found."""
    submit = next((r for r in requests if isinstance(r, JobSubmitRequested)), None)
    if submit is None:
        entry = (evidence.told or {}).get((told.host or "", told.job))
        if entry is not None and entry.config:
            submit = JobSubmitRequested(
                job=told.job, req_n=1, at=told.submitted_at or draft.now.wall,
                name=str(entry.config.get("name") or told.job), config=entry.config,
                secret_names=entry.secret_names,
            )  # fmt: skip
    order, draft.next_order = draft.next_order, draft.next_order + 1
    if submit is None:
        return Job(told.model_copy(update={"job_n": 0}), told.job, order), False
    draft.decide(ConfigSaved(submit.job, submit.config))
    return recall(draft, submit, order), True


def _catch_up(
    draft: Draft, job: Job, told: JobState, requests: list[JobRequest], evidence: Evidence
) -> Job:
    """Take over the newest state, and what only the scheduler needs beside it."""
    placed = evidence.placed.get(job.id, ())
    answered = [r for r in requests if r.req_n <= told.req_n]
    names = [r.secret_names for r in answered if isinstance(r, JobSecretsRequested)]
    turns = [r for r in answered if isinstance(r, JobPauseRequested | JobResumeRequested)]
    resumed = bool(turns) and isinstance(turns[-1], JobResumeRequested)
    hosts = [*job.hosts, *(host for _, host in placed), *([told.host] if told.host else [])]
    for number, host in placed:
        if number > job.state.attempt:
            status = "started" if number == told.attempt and told.host == host else "ended"
            draft.decide(AttemptSaved(job.id, number, host, (), status, draft.now.wall))
    return draft.put(
        replace(
            job,
            state=told,
            run=_run(job, told, draft.now),
            secret_names=tuple(sorted(set(names[-1]))) if names else job.secret_names,
            hosts=tuple(dict.fromkeys(hosts)),
            resume_after_stop=told.stop_requested == "pause" and resumed,
            attempt_floor=max(
                [job.attempt_floor, job.state.attempt, told.attempt, *(n for n, _ in placed)]
            ),
            setbacks=0,
            not_before=None,
            avoid=(),
        )
    )


def _run(job: Job, told: JobState, now: Moment) -> Run | None:
    """Return the attempt that the newest state leaves open."""
    if told.host is None or told.status.is_terminal or told.status is JobStatus.PAUSED:
        return None
    phase = Phase.STARTED if told.status is JobStatus.RUNNING else Phase.ASSIGNED
    old = job.run
    if old is not None and (old.attempt, old.host) == (told.attempt, told.host):
        return replace(old, phase=max(old.phase, phase, key=list(Phase).index))
    return Run(told.attempt, told.host, told.gpus, told.gpu_uuids, now.wall, phase)


def _keep_checkpoint(draft: Draft, one: Fact, evidence: Evidence) -> None:
    """Keep what was announced by the host to which that attempt was given."""
    job = draft.job(one.job)
    if job is None:
        return
    before = draft.before.jobs.get(one.job)
    given = set(evidence.placed.get(one.job, ()))
    for known in (before, job):
        if known is not None:
            given.add((known.state.attempt, known.state.host or ""))
            if known.run is not None:
                given.add((known.run.attempt, known.run.host))
    if (one.attempt, one.host) in given:
        merge_checkpoint(draft, job, one.host, one.attempt, one.fact)


def _give_up(draft: Draft, job_id: str) -> None:
    job = draft.job(job_id)
    if job is None or job.is_ended:
        return
    draft.change(
        replace(job, run=None), Change.FAILED if job.state.status is not JobStatus.PAUSED else Change.CANCELLED,
        reason=Reason.CONFIG_INVALID, message=_NO_CONFIG, waiting_for=None, stop_requested=None,
        finished_at=draft.now.wall,
    )  # fmt: skip


def _agree(
    draft: Draft, evidence: Evidence, desired: Mapping[Key, ControlEntry]
) -> dict[Key, ControlEntry]:
    """Return what stays of the desired states: of each open attempt what its host was told, and stops and collections."""
    told = evidence.told or {}
    kept = {
        (host, job_id): entry
        for (host, job_id), entry in told.items()
        if entry.desired in ("stop", "collect") and not _is_open(draft, host, job_id)
    }
    for job in [*draft.jobs()]:
        run = job.run
        if run is None:
            continue
        key = (run.host, job.id)
        options = [e for e in (told.get(key), desired.get(key)) if e and e.attempt == run.attempt]
        if not options:
            settle(draft, job, _UNTOLD)
            continue
        kept[key] = options[0]
        if job.state.stop_requested and options[0].desired == "run":
            ask_to_stop_again(draft, job)
    return kept


def _is_open(draft: Draft, host: str, job_id: str) -> bool:
    job = draft.job(job_id)
    return job is not None and job.run is not None and job.run.host == host


__all__ = ["Evidence", "Fact", "Healed", "heal", "mentioned"]
