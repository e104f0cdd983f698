"""From rows to what users see, in their language. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from services.api.db.tables import JobEventRow, JobRow
from services.api.jobs.actions import Action, JobNow
from services.api.jobs.schemas import JobEventRead, JobRead, Progress
from services.api.telemetry.latest import Latest
from shared.jobs.lifecycle import JobState
from shared.jobs.reasons import REASONS, Lang, Reason
from shared.jobs.status import JobStatus
from shared.specs import SPECS
from shared.specs.parameters import described

_NOT_SEEN = {
    "en": "Accepted; the scheduler will place it.",
    "zh": "已接收，等待调度器分配。",
}
_LIVE = (JobStatus.PENDING.value, JobStatus.RUNNING.value)


def state_of(row: JobRow) -> JobState | None:
    """Return the scheduler's last word, or None before it has seen the job."""
    return JobState.model_validate(row.state) if row.state else None


def status_now(row: JobRow, pending: AbstractSet[Action]) -> JobStatus:
    """Return the status; an ended job whose retry is accepted waits already, so that nobody takes it for ended."""
    status = JobStatus(row.status)
    return JobStatus.PENDING if status.is_terminal and Action.RETRY in pending else status


def job_now(row: JobRow, pending: AbstractSet[Action]) -> JobNow:
    """Return what decisions are made from."""
    state = row.state or {}
    return JobNow(status_now(row, pending), row.reason, pending, state.get("stop_requested"))


def job_read(
    row: JobRow,
    lang: Lang,
    *,
    labels: Mapping[str, str],
    latest: Latest | None = None,
    pending: AbstractSet[Action] = frozenset(),
) -> JobRead:
    """Return a job as REST shows it; `labels` gives the names of hosts."""
    state = state_of(row)
    stopping = _stop(state, pending)
    reason = Reason(row.reason) if row.reason else None
    status = status_now(row, pending)
    reopening = status.value != row.status
    if reopening:
        reason = None
    if stopping and status.value in _LIVE and reason is not Reason.DISCONNECTED:
        reason = Reason.STOPPING
    found = latest or Latest()
    return JobRead(
        uuid=row.uuid,
        name=row.name,
        description=row.description,
        status=status.value,
        reason=reason.value if reason else None,
        message=_message(None if reopening else state, reason, lang),
        hint=REASONS[reason].hint(lang) if reason else None,
        waiting_for=_NOT_SEEN[lang] if reopening else _waiting(row, state, reason, lang),
        algorithm=row.algorithm,
        config=row.config,
        attempt=row.attempt,
        host=labels.get(row.host, row.host) if row.host else None,
        gpus=list(state.gpus) if state else [],
        depends_on=list(row.depends_on),
        pipeline=None,
        tags=list(row.tags),
        progress=_progress(found, status),
        latest_metrics=found.latest_metrics or {},
        final_metrics=None if reopening else _final(row, state),
        checkpoint_dir=state.checkpoint_dir if state else None,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=None if reopening else row.finished_at,
        priority=row.priority,
        stop_requested=stopping,
    )


def event_read(row: JobEventRow, lang: Lang, labels: Mapping[str, str]) -> JobEventRead:
    """Return one entry of the history."""
    state = JobState.model_validate(row.state)
    return JobEventRead(
        n=row.job_n,
        type=f"job.{row.change}",
        time=row.at,
        status=state.status.value,
        reason=state.reason.value if state.reason else None,
        message=_message(state, state.reason, lang),
        hint=REASONS[state.reason].hint(lang) if state.reason else None,
        attempt=state.attempt,
        host=labels.get(state.host, state.host) if state.host else None,
    )


def clone_body(row: JobRow) -> dict[str, Any]:
    """Return a body for `POST /api/v1/jobs/` with the job's values; secrets are left out.

    Values that are the default anyway are left out too: some belong to a choice that was not made, and giving them
    without it is refused.
    """
    model = next((m for name, m in SPECS.items() if name == row.algorithm), None)
    known = described(model) if model else {}
    kept = {
        name: value
        for name, value in row.config.items()
        if name in known and not known[name].secret and value is not None
    }
    body = {n: v for n, v in kept.items() if known[n].required or v != known[n].default}
    name = f"{row.name[:190]} (copy)"
    return {
        **body,
        "algorithm": row.algorithm,
        "name": name,
        "description": row.description,
        "tags": list(row.tags),
    }


def _progress(latest: Latest, status: JobStatus) -> Progress | None:
    """Return how far it is; a job that stands still before its last step has no time of arrival."""
    if latest.progress is None:
        return None
    if status in (JobStatus.RUNNING, JobStatus.COMPLETED):
        return Progress(**latest.progress)
    return Progress(**latest.progress | {"eta_seconds": None})


def _stop(state: JobState | None, pending: AbstractSet[Action]) -> str | None:
    for action in (Action.CANCEL, Action.PAUSE):
        if action in pending:
            return action.value
    return state.stop_requested if state else None


def _message(state: JobState | None, reason: Reason | None, lang: Lang) -> str | None:
    if state and state.message and (reason is None or reason == state.reason):
        return state.message.zh if lang == "zh" else state.message.en
    return REASONS[reason].sentence(lang) if reason else None


def _waiting(row: JobRow, state: JobState | None, reason: Reason | None, lang: Lang) -> str | None:
    if row.status != JobStatus.PENDING.value:
        return None
    if state is None:
        return _NOT_SEEN[lang]
    if state.waiting_for:
        return state.waiting_for.zh if lang == "zh" else state.waiting_for.en
    return REASONS[reason].sentence(lang) if reason else None


def _final(row: JobRow, state: JobState | None) -> dict[str, Any] | None:
    if state is None or not JobStatus(row.status).is_terminal:
        return None
    return state.final_metrics
