"""Where a waiting job stands before any host is looked at: dependencies, back-off, the checkpoints it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.scheduler.core import words
from services.scheduler.core.order import Ask, Queue, Rank, Ready, Standing, Waits
from services.scheduler.core.shortage import short_of_room
from services.scheduler.core.state import Checkpoint, ClusterState, Host, Job, Limits, ModelRef
from shared.jobs.lifecycle import Bilingual, Change
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus


@dataclass(frozen=True, slots=True)
class Doom:
    """A waiting job that can never start: it ends with this change and reason."""

    change: Change
    reason: Reason
    message: Bilingual


@dataclass(frozen=True, slots=True)
class Needed:
    """A checkpoint that the run must be able to read, for the parameter `field`."""

    field: str
    path: str
    location: str


def standing(
    job: Job, jobs: Mapping[str, Job], hosts: Mapping[str, Host], limits: Limits, now: datetime
) -> Standing | Doom | None:
    """Return where a job stands in the queue, or None where it is not in it."""
    if job.state.status is JobStatus.PAUSED:
        paused = _dependency(job, jobs, limits, now)
        return paused if isinstance(paused, Doom) else None
    if not job.waits:
        return None
    blocked = _dependency(job, jobs, limits, now)
    if blocked is not None:
        return blocked
    if job.not_before is not None:
        # A clock that was set back must not stretch the wait beyond the longest back-off.
        longest = now + timedelta(seconds=limits.backoff_last)
        if now < job.not_before <= longest:
            return Waits(words.try_again_at(job.not_before), job.not_before)
    needed = needs(job, jobs)
    if isinstance(needed, Doom):
        return needed
    avoid = {host: until for host, until in job.avoid if until > now and host in hosts}
    unfit = frozenset(avoid) | short_of_room(job, hosts)
    return Ready(_ask(job, needed, hosts, unfit), min(avoid.values(), default=None))


def with_due(state: ClusterState, now: datetime) -> Queue:
    """Return the queue with every job whose back-off or exclusion has run out at its new place."""
    updates: dict[str, tuple[Rank, Standing] | None] = {}
    for job_id, due in state.queue.due.items():
        if due <= now:
            job = state.jobs[job_id]
            found = standing(job, state.jobs, state.hosts, state.limits, now)
            if found is not None and not isinstance(found, Doom):
                updates[job_id] = (job.rank, found)
    return state.queue.changed(updates)


def needs(job: Job, jobs: Mapping[str, Job]) -> tuple[Needed, ...] | Doom:
    """Return the checkpoints of other jobs that this one uses, as frozen before or as chosen now."""
    if job.frozen:
        return tuple(Needed(*one) for one in job.frozen)
    found = []
    for ref in job.models:
        source = jobs.get(ref.job)
        checkpoint = select(source.checkpoints, ref.selector) if source else None
        if checkpoint is None:
            return _no_checkpoint(ref, source)
        found.append(Needed(ref.field, checkpoint.path, checkpoint.location))
    return tuple(found)


def select(checkpoints: tuple[Checkpoint, ...], selector: str) -> Checkpoint | None:
    """Return the checkpoint that `last`, `best` or a step names; the newest attempt wins per step."""
    alive = sorted((c for c in checkpoints if not c.deleted), key=lambda c: (c.attempt, c.step))
    if selector.isdigit():
        return next((c for c in reversed(alive) if c.step == int(selector)), None)
    if selector == "best":
        best = [c for c in alive if c.best]
        alive = best or alive
    return alive[-1] if alive else None


def resumable(job: Job) -> tuple[Checkpoint, ...]:
    """Return the checkpoints worth going back to, newest first; step 0 holds nothing that a new start lacks."""
    alive = [
        c
        for c in job.checkpoints
        if not c.deleted and c.step > 0 and (c.shared_root or c.host not in job.lost_hosts)
    ]
    return tuple(sorted(alive, key=lambda c: (c.attempt, c.step), reverse=True))


def _dependency(
    job: Job, jobs: Mapping[str, Job], limits: Limits, now: datetime
) -> Waits | Doom | None:
    for dep_id in job.after:
        dep = jobs.get(dep_id)
        if dep is None:
            begun = job.state.submitted_at or now
            due = begun + timedelta(seconds=limits.unknown_dependency)
            if due <= now:
                return _dependency_failed(dep_id, "not known", "不存在")
            return Waits(words.waits_for(dep_id), due)
        if dep.state.deleted:
            return _dependency_failed(dep.name, "deleted", "已删除")
        if dep.state.status is JobStatus.COMPLETED:
            continue
        if dep.is_ended:
            return _dependency_failed(dep.name, dep.state.status.value, dep.state.status.value)
        return Waits(words.waits_for(dep.name))
    return None


def _dependency_failed(name: str, en: str, zh: str) -> Doom:
    message = Bilingual(
        en=f"job {name}, which it waited for, is {en}", zh=f"所等待的任务 {name} {zh}"
    )
    return Doom(Change.CANCELLED, Reason.DEPENDENCY_FAILED, message)


def _no_checkpoint(ref: ModelRef, source: Job | None) -> Doom:
    name = source.name if source else ref.job
    which_en = f"checkpoint of step {ref.selector}" if ref.selector.isdigit() else "checkpoint"
    which_zh = f"第 {ref.selector} 步的检查点" if ref.selector.isdigit() else "检查点"
    have = ", ".join(str(c.step) for c in (source.checkpoints if source else ()) if not c.deleted)
    return Doom(
        Change.FAILED,
        Reason.MODEL_MISSING,
        Bilingual(
            en=f"{ref.field}: job {name} has no {which_en}; it has steps: {have or 'none'}",
            zh=f"{ref.field}：任务 {name} 没有{which_zh}；现有步数：{have or '无'}",
        ),
    )


def _ask(
    job: Job, needed: tuple[Needed, ...], hosts: Mapping[str, Host], avoid: frozenset[str]
) -> Ask:
    own = [c for c in resumable(job) if not _is_lost(c, hosts)]
    sources = [frozenset({n.location}) for n in needed]
    if own:
        sources.append(frozenset(c.location for c in own))
    demand = job.demand
    return Ask(
        num_gpus=demand.num_gpus,
        gpu_type=demand.gpu_type,
        pin=demand.pin,
        memory_mib=demand.memory_mib,
        outgrown_mib=demand.outgrown_mib,
        sources=tuple(dict.fromkeys(sources)),
        prefer=own[0].location if own else None,
        avoid=avoid,
    )


def _is_lost(checkpoint: Checkpoint, hosts: Mapping[str, Host]) -> bool:
    """Tell whether nobody can be expected to read it again: its host is written off."""
    if checkpoint.shared_root:
        return False
    host = hosts.get(checkpoint.host)
    return host is None or host.lost or host.forgotten
