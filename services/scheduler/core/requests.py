"""What each request of a user changes, in every state that a job can be in: nothing is ignored silently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from services.scheduler.core.decisions import (
    DesiredCleared,
    DesiredSet,
    RequestHeld,
    RequestReleased,
)
from services.scheduler.core.draft import Draft
from services.scheduler.core.endings import Ending, settle
from services.scheduler.core.state import Job
from services.scheduler.core.submit import opened, submit
from shared.events.requests import (
    JobCancelRequested,
    JobDeclareLostRequested,
    JobDeleteRequested,
    JobPauseRequested,
    JobPriorityRequested,
    JobRequest,
    JobResumeRequested,
    JobRetryRequested,
    JobSecretsRequested,
    JobSubmitRequested,
)
from shared.jobs.lifecycle import Bilingual, Change
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus

_STOPS = {"pause": ("pause", "pause"), "cancel": ("stop", "cancel"), "drain": ("stop", "drain")}
HELD_AT_MOST = 64


def arrive(draft: Draft, request: JobRequest) -> None:
    """Apply a request if it is next in its job's sequence, drop a repetition, hold one that came too early."""
    job = draft.job(request.job)
    answered = job.state.req_n if job else 0
    if request.req_n <= answered:
        draft.count("request_repeated", job=request.job, req_n=request.req_n)
        return
    if request.req_n > answered + 1:
        _hold(draft, request)
        return
    decide(draft, job, request)
    _apply_held(draft, request.job)


def decide(draft: Draft, job: Job | None, request: JobRequest) -> None:
    """Carry out one request. Total over (status, request); exactly one request number is answered."""
    if job is None:
        if isinstance(request, JobSubmitRequested):
            submit(draft, request)
        else:
            draft.count("request_without_job", job=request.job, req_n=request.req_n)
        return
    # Every event from here on carries the answered number.
    job = replace(job, state=job.state.model_copy(update={"req_n": request.req_n, "note": None}))
    if job.state.deleted:
        note(draft, job, "the job is deleted", "任务已删除")
        return
    _HANDLERS[type(request)](draft, job, request)


def note(draft: Draft, job: Job, en: str, zh: str, **fields: Any) -> None:
    """Answer a request that changes nothing by saying so."""
    draft.change(job, Change.UPDATED, note=Bilingual(en=en, zh=zh), **fields)


def ask_to_stop(draft: Draft, job: Job, wanted: str) -> Job:
    """Tell the host to stop the open attempt; `wanted` is `cancel`, `pause` or `drain`."""
    _tell_to_stop(draft, job, wanted)
    return draft.change(job, Change.STOPPING, stop_requested=wanted, reason=Reason.STOPPING)


def ask_to_stop_again(draft: Draft, job: Job) -> None:
    """Tell the host once more what was decided before: it may not have heard of it."""
    if job.state.stop_requested is not None:
        _tell_to_stop(draft, job, job.state.stop_requested)


def _tell_to_stop(draft: Draft, job: Job, wanted: str) -> None:
    run = job.run
    if run is None:
        raise ValueError(f"{job.id}: no attempt is open")
    desired, mode = _STOPS[wanted]
    draft.decide(
        DesiredSet(
            run.host, job.id, run.attempt, desired, stop_mode=mode, gpus=run.gpus,
            gpu_uuids=run.gpu_uuids, disconnect_policy=job.policy.value,
            stop_after_seconds=draft.limits.stop_after,
        )
    )  # fmt: skip


def _cancel(draft: Draft, job: Job, _: JobRequest) -> None:
    status = job.state.status
    if status is JobStatus.COMPLETED:
        draft.change(job, Change.UPDATED, reason=Reason.CANCEL_TOO_LATE)
    elif status.is_terminal:
        note(draft, job, "it had already ended", "任务已经结束")
    elif job.run is None:
        draft.change(
            replace(job, not_before=None, avoid=()), Change.CANCELLED, reason=Reason.USER,
            waiting_for=None, stop_requested=None, finished_at=draft.now.wall,
        )  # fmt: skip
    elif job.state.stop_requested == "cancel":
        note(draft, job, "it is being cancelled already", "任务正在取消")
    else:
        ask_to_stop(draft, replace(job, resume_after_stop=False), "cancel")


def _pause(draft: Draft, job: Job, _: JobRequest) -> None:
    wanted = job.state.stop_requested
    if job.state.status is JobStatus.PAUSED:
        note(draft, job, "it is paused already", "任务已经暂停")
    elif job.is_ended:
        note(draft, job, "it had already ended", "任务已经结束")
    elif job.run is None:
        draft.change(
            replace(job, not_before=None), Change.PAUSED, reason=Reason.USER, waiting_for=None
        )
    elif wanted == "cancel":
        note(draft, job, "it is being cancelled", "任务正在取消")
    elif wanted == "pause":
        en, zh = "it is being paused already", "任务正在暂停"
        note(draft, replace(job, resume_after_stop=False), en, zh)
    else:
        ask_to_stop(draft, job, "pause")


def reopen(draft: Draft, job: Job) -> None:
    """Let a paused, failed or cancelled job wait for a host again: someone asked for it, and the request is lost."""
    if job.state.status is JobStatus.PAUSED:
        _resume(draft, job, None)
    elif job.state.status in (JobStatus.FAILED, JobStatus.CANCELLED):
        _retry(draft, job, None)


def _resume(draft: Draft, job: Job, _: JobRequest | None) -> None:
    if job.state.status is JobStatus.PAUSED:
        reopened = replace(job, setbacks=0, not_before=None)
        draft.change(
            reopened, Change.RESUMED, reason=None, message=None, waiting_for=None,
            final_seq=None, final_metrics=None,
        )  # fmt: skip
    elif job.state.stop_requested == "pause":
        en, zh = "it goes on as soon as the pause is done", "暂停完成后将立即继续"
        note(draft, replace(job, resume_after_stop=True), en, zh)
    elif job.is_ended:
        note(draft, job, "it has ended; retry it instead", "任务已经结束，请改用重试")
    else:
        note(draft, job, "it is not paused", "任务没有暂停")


def _retry(draft: Draft, job: Job, _: JobRequest | None) -> None:
    if job.state.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
        note(
            draft,
            job,
            "only a failed or cancelled job is retried",
            "只有失败或已取消的任务可以重试",
        )
        return
    job = opened(draft, replace(job, setbacks=0, not_before=None, avoid=()))
    draft.change(
        job, Change.RETRIED, reason=None, message=None, waiting_for=None, retries_spent=0,
        host=None, gpus=(), gpu_uuids=(), final_seq=None, final_metrics=None,
        started_at=None, finished_at=None, stop_requested=None,
    )  # fmt: skip


def _priority(draft: Draft, job: Job, request: JobRequest) -> None:
    assert isinstance(request, JobPriorityRequested)
    if job.is_ended:
        note(
            draft, job, "it has ended; its priority means nothing", "任务已经结束，优先级不再有意义"
        )
    else:
        draft.change(job, Change.UPDATED, priority=max(0, min(100, request.priority)))


def _secrets(draft: Draft, job: Job, request: JobRequest) -> None:
    """Take over the names in any status: an ended job may be retried, and a running one goes on as it began."""
    assert isinstance(request, JobSecretsRequested)
    names = tuple(sorted(set(request.secret_names)))
    draft.change(replace(job, secret_names=names), Change.UPDATED)


def _declare_lost(draft: Draft, job: Job, _: JobRequest) -> None:
    run = job.run
    if job.is_ended:
        note(draft, job, "it had already ended", "任务已经结束")
        return
    if run is None:
        gone = {c.host for c in job.checkpoints if not _is_online(draft, c.host)}
        job = replace(job, lost_hosts=tuple(sorted({*job.lost_hosts, *gone})))
        en, zh = "checkpoints on silent hosts no longer bind it", "失联主机上的检查点不再限制该任务"
        note(draft, job, en, zh)
    elif _is_online(draft, run.host):
        note(draft, job, "its host is online", "其主机在线")
    else:
        job = replace(job, lost_hosts=tuple(sorted({*job.lost_hosts, run.host})))
        settle(draft, draft.put(job), Ending("lost", Reason.HOST_LOST))


def _delete(draft: Draft, job: Job, _: JobRequest) -> None:
    waiting = [d for d in draft.dependents(job.id) if (o := draft.job(d)) and not o.is_ended]
    if not job.is_ended:
        note(draft, job, "it is live; cancel it first", "任务尚未结束，请先取消")
    elif waiting:
        note(draft, job, "unfinished jobs depend on it", "有未完成的任务依赖它")
    else:
        draft.change(job, Change.DELETED, deleted=True)
        for host_id in job.hosts:
            host = draft.host(host_id)
            if host is None or host.forgotten:
                draft.decide(DesiredCleared(host_id, job.id))
            else:
                draft.decide(DesiredSet(host_id, job.id, job.state.attempt, "collect"))


def _submit_again(draft: Draft, job: Job, _: JobRequest) -> None:
    note(draft, job, "it was submitted before", "任务已经提交过")


_HANDLERS: dict[type[Any], Callable[[Draft, Job, JobRequest], None]] = {
    JobSubmitRequested: _submit_again,
    JobCancelRequested: _cancel,
    JobPauseRequested: _pause,
    JobResumeRequested: _resume,
    JobRetryRequested: _retry,
    JobPriorityRequested: _priority,
    JobSecretsRequested: _secrets,
    JobDeclareLostRequested: _declare_lost,
    JobDeleteRequested: _delete,
}


def _is_online(draft: Draft, host_id: str) -> bool:
    host = draft.host(host_id)
    return host is not None and host.online and not host.forgotten


def _hold(draft: Draft, request: JobRequest) -> None:
    held = draft.held(request.job)
    if any(r.req_n == request.req_n for r in held):
        draft.count("request_repeated", job=request.job, req_n=request.req_n)
        return
    if len(held) >= HELD_AT_MOST:
        # The api publishes unanswered requests again, so dropping the latest loses nothing.
        draft.count("request_hold_full", job=request.job, req_n=request.req_n)
        return
    draft.hold(request.job, tuple(sorted((*held, request), key=lambda r: r.req_n)))
    draft.decide(RequestHeld(request))


def _apply_held(draft: Draft, job_id: str) -> None:
    while held := draft.held(job_id):
        job = draft.job(job_id)
        answered = job.state.req_n if job else 0
        first = held[0]
        if first.req_n > answered + 1:
            return
        draft.hold(job_id, held[1:])
        draft.decide(RequestReleased(job_id, first.req_n))
        if first.req_n == answered + 1:
            decide(draft, job, first)
