"""Carry out a plan: give jobs their hosts as new attempts, and tell the others why they wait."""

from __future__ import annotations

from dataclasses import replace
from heapq import nsmallest

from services.scheduler.core import words
from services.scheduler.core.decisions import DesiredSet
from services.scheduler.core.draft import Draft
from services.scheduler.core.inputs import Place
from services.scheduler.core.place import schedule
from services.scheduler.core.readiness import Doom, needs
from services.scheduler.core.state import Assignment, Host, Job, Plan, Run
from services.scheduler.core.words import Why
from shared.jobs.lifecycle import Change
from shared.jobs.reasons import Reason


def place(draft: Draft, one: Place) -> None:
    """Decide for the state before this step, and carry it out."""
    plan = schedule(draft.before, draft.now, one.limit)
    for assignment in plan.assignments:
        _assign(draft, assignment)
    if not plan.partial:
        draft.reservations = plan.reservations
        _tell(draft, plan, one.refresh)


def _assign(draft: Draft, assignment: Assignment) -> None:
    """Begin the next attempt: its number is higher than any that was ever heard of."""
    job = draft.job(assignment.job)
    host = draft.host(assignment.host)
    if job is None or host is None:
        raise ValueError(f"{assignment.job} or {assignment.host} is not in the state")
    needed = needs(job, {ref.job: other for ref in job.models if (other := draft.job(ref.job))})
    if isinstance(needed, Doom):
        raise ValueError(f"{job.id}: {needed.message.en}")
    number = max(job.state.attempt, job.attempt_floor) + 1
    run = Run(
        number, host.id, assignment.gpus, assignment.gpu_uuids, draft.now.wall
    )  # fmt: skip
    paths = {one.field: one.path for one in needed}
    job = replace(
        job,
        run=run,
        frozen=tuple((one.field, one.path, one.location) for one in needed),
        hosts=tuple(dict.fromkeys((*job.hosts, host.id))),
        not_before=None,
    )
    if job.id in host.stops:
        stops = {j: a for j, a in host.stops.items() if j != job.id}
        draft.put_host(replace(host, stops=stops), durable=False)
    why = words.starting_on(host.label)
    job = draft.change(
        job,
        Change.ASSIGNED,
        attempt=number,
        host=host.id,
        gpus=assignment.gpus,
        gpu_uuids=assignment.gpu_uuids,
        model_path=paths.get("model_path"),
        reason=Reason.ASSIGNED,
        waiting_for=why.text,
        message=None,
        note=None,
        final_seq=None,
        final_metrics=None,
    )
    draft.attempt(job, "assigned")
    draft.decide(_desired(draft, job, host, run, paths))


def _desired(draft: Draft, job: Job, host: Host, run: Run, paths: dict[str, str]) -> DesiredSet:
    there = [c for c in job.checkpoints if not c.deleted]
    return DesiredSet(
        host=run.host,
        job=job.id,
        attempt=run.attempt,
        desired="run",
        model_path=paths.get("model_path"),
        resolved={field: path for field, path in paths.items() if field != "model_path"},
        # The agent picks the newest one that it can read, or starts from the model.
        resume=run.attempt > 1 and bool(there),
        checkpoints=tuple(sorted({c.step for c in there if host.can_read(c.location)})),
        gpus=run.gpus,
        gpu_uuids=run.gpu_uuids,
        secret_names=job.secret_names,
        disconnect_policy=job.policy.value,
        stop_after_seconds=draft.limits.stop_after,
        kill_grace_seconds=draft.limits.kill_grace,
    )


def _tell(draft: Draft, plan: Plan, refresh: int) -> None:
    """Publish why jobs wait: at once where nothing was said yet, else a bounded number in order of the queue.

    When GPUs come and go the numbers change for every job that waits; ten thousand events a second would
    tell nobody more than the first few.
    """
    if not refresh and not draft.before.untold:
        return
    for job_id in sorted(draft.before.untold & plan.waiting.keys()):
        job = draft.job(job_id)
        if job is not None and job.waits:
            _say(draft, job, plan.waiting[job_id])
    if refresh:
        stale = (job for job in draft.before.jobs.values() if _is_stale(job, plan))
        for job in nsmallest(refresh, stale, key=lambda job: job.rank):
            if job.id not in draft.before.untold:
                _say(draft, job, plan.waiting[job.id])


def _is_stale(job: Job, plan: Plan) -> bool:
    why = plan.waiting.get(job.id)
    told = job.state.waiting_for
    return why is not None and (told is None or told.en != why.en)


def _say(draft: Draft, job: Job, why: Why) -> None:
    draft.change(job, Change.UPDATED, reason=why.reason, waiting_for=why.text)
