"""What a user may ask of a job now, from its status and from requests that are still on their way. Pure."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum

from shared.errors import TrainyardError, conflict
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus


class Action(StrEnum):
    """Verbs of `POST /api/v1/jobs/{uuid}/…`, and DELETE."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    DECLARE_LOST = "declare_lost"
    DELETE = "delete"


_S = JobStatus
ALLOWED: dict[Action, frozenset[JobStatus]] = {
    Action.CANCEL: frozenset({_S.PENDING, _S.RUNNING, _S.PAUSED}),
    Action.PAUSE: frozenset({_S.PENDING, _S.RUNNING}),
    Action.RESUME: frozenset({_S.PAUSED}),
    Action.RETRY: frozenset({_S.FAILED, _S.CANCELLED}),
    Action.DECLARE_LOST: frozenset({_S.RUNNING, _S.PENDING}),
    Action.DELETE: frozenset({_S.COMPLETED, _S.FAILED, _S.CANCELLED}),
}
_INSTEAD: dict[Action, tuple[str, str]] = {
    Action.CANCEL: ("It has ended already.", "任务已经结束。"),
    Action.PAUSE: (
        "Only a job that waits or runs can be paused.",
        "只有等待中或运行中的任务可以暂停。",
    ),
    Action.RESUME: (
        "Only a paused job can be resumed; use retry for one that failed or was cancelled.",
        "只有已暂停的任务可以恢复；失败或已取消的任务请用重试。",
    ),
    Action.RETRY: (
        "Only a job that failed or was cancelled can be retried; clone it to run it again.",
        "只有失败或已取消的任务可以重试；要再次运行请克隆任务。",
    ),
    Action.DECLARE_LOST: (
        "Only a job whose host is silent (reason disconnected) can be declared lost.",
        "只有主机失联（原因 disconnected）的任务可以判定为丢失。",
    ),
    Action.DELETE: ("Cancel it first.", "请先取消任务。"),
}
# A request on its way that forbids another one until the scheduler has answered it.
_BLOCKED_BY: dict[Action, frozenset[Action]] = {
    Action.CANCEL: frozenset({Action.DELETE}),
    Action.PAUSE: frozenset({Action.CANCEL, Action.RESUME, Action.DELETE}),
    Action.RESUME: frozenset({Action.CANCEL, Action.DELETE}),
    Action.RETRY: frozenset({Action.DELETE}),
    Action.DECLARE_LOST: frozenset({Action.DELETE}),
    Action.DELETE: frozenset(),
}


@dataclass(frozen=True, slots=True)
class JobNow:
    """What a decision needs to know of a job."""

    status: JobStatus
    reason: str | None
    pending: AbstractSet[Action]
    """Requests that the scheduler has not answered."""
    stop_requested: str | None = None
    """What the scheduler is carrying out: `cancel`, `pause` or `drain`."""


def decide(action: Action, job: JobNow) -> bool:
    """Return True to write the request, False when the same one is on its way already.

    Raises TrainyardError 409 when the job's status, or another request on its way, forbids it.
    """
    if action in job.pending or job.stop_requested == action.value:
        return False
    if job.status not in ALLOWED[action]:
        raise invalid_transition(action, job.status)
    if action is Action.DECLARE_LOST and job.reason != Reason.DISCONNECTED.value:
        raise invalid_transition(action, job.status)
    stopping = {Action.CANCEL} if job.stop_requested == "cancel" else set()
    blocking = _BLOCKED_BY[action] & (job.pending | stopping)
    if blocking:
        name = min(blocking).value
        raise conflict(
            "request_pending",
            f"{name} is still on its way for this job; wait until it has happened, then {action.value} it.",
            f"该任务的 {name} 请求仍在处理中，请等其完成后再执行 {action.value}。",
        )
    return True


def invalid_transition(action: Action, status: JobStatus) -> TrainyardError:
    """Return the 409 that names the status and what would be possible."""
    en, zh = _INSTEAD[action]
    return conflict(
        "invalid_transition",
        f"{action.value} is not possible while the job is {status.value}. {en}",
        f"任务处于 {status.value} 时不能执行 {action.value}。{zh}",
    )
