"""Carry out a plan: give jobs their hosts as new attempts, and tell the others why they wait."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import replace
from heapq import nsmallest

from services.scheduler.core import shortage, words
from services.scheduler.core.decisions import DesiredSet
from services.scheduler.core.draft import Draft
from services.scheduler.core.inputs import Place
from services.scheduler.core.order import Rank
from services.scheduler.core.place import schedule
from services.scheduler.core.readiness import Doom, needs
from services.scheduler.core.state import Assignment, ClusterState, Host, Job, Plan, Run
from services.scheduler.core.words import Why
from shared.jobs.lifecycle import Change
from shared.jobs.reasons import Reason

FEW = 32


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
    draft.decide(desired_run(draft, job, host, run, paths))


def desired_run(draft: Draft, job: Job, host: Host, run: Run, paths: dict[str, str]) -> DesiredSet:
    """Return what the host of an open attempt is told; `paths`: folders of checkpoints that parameters name."""
    there = [c for c in job.checkpoints if not c.deleted]
    return DesiredSet(
        host=run.host,
        job=job.id,
        attempt=run.attempt,
        desired="run",
        model_path=paths.get("model_path"),
        resolved={field: path for field, path in paths.items() if field != "model_path"},
        oom_halvings=job.oom_halvings,
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
    untold = draft.before.untold
    if not refresh and not untold:
        return
    found = sorted(_new(draft.before, plan), key=_job)
    if refresh:
        found += nsmallest(refresh, _stale(draft.before, plan, refresh), key=lambda one: one[0])
    for rank, why in found:
        job = draft.job(rank[-1])
        if job is not None and job.waits:
            told = _better(draft.before, job, why)
            draft.change(job, Change.UPDATED, reason=told.reason, waiting_for=told.text)


def _new(state: ClusterState, plan: Plan) -> Iterator[tuple[Rank, Why]]:
    """Yield jobs of which nothing was said; a few are looked for in each group, many by going through all."""
    untold = state.untold
    if len(untold) > FEW:
        for why, ranks in _waiting(state.jobs, plan):
            yield from ((rank, why) for rank in ranks if rank[-1] in untold)
        return
    for job_id in (job for job in untold if job in state.jobs):
        rank = state.jobs[job_id].rank
        if job_id in plan.unready:
            yield rank, plan.unready[job_id]
        for why, ranks in plan.blocked:
            at = bisect_left(ranks, rank)
            if at < len(ranks) and ranks[at] == rank:
                yield rank, why


def _job(found: tuple[Rank, Why]) -> str:
    return found[0][-1]


def _stale(state: ClusterState, plan: Plan, limit: int) -> Iterator[tuple[Rank, Why]]:
    """Yield jobs of which something else was said; of each group no more than can be renewed."""
    for why, ranks in _waiting(state.jobs, plan):
        left = limit
        for rank in ranks:
            job = state.jobs[rank[-1]]
            told = job.state.waiting_for
            if (told is None or told.en != _better(state, job, why).en) and rank[
                -1
            ] not in state.untold:
                yield rank, why
                left -= 1
                if left == 0:
                    break


def _better(state: ClusterState, job: Job, found: Why) -> Why:
    """A host that refused for want of room, and still has none, is better told by that."""
    if found.reason is not Reason.HOST_REFUSED or not job.short:
        return found
    return shortage.why(job, state.hosts) or found


def _waiting(jobs: Mapping[str, Job], plan: Plan) -> Iterator[tuple[Why, tuple[Rank, ...]]]:
    """Yield the groups of waiting jobs with their reason, each in order; a table of all jobs would be long to make."""
    for job_id, why in plan.unready.items():
        yield why, (jobs[job_id].rank,)
    yield from plan.blocked
