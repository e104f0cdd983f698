"""Jobs that a full disk has stopped: paused by the platform, and resumed by it once there is room again.

A job that a person paused is never resumed here. Every resume needs the room that was found missing, so nothing is
tried in vain; attempts that end without a new checkpoint still count as setbacks, which are bounded.
"""

from __future__ import annotations

from dataclasses import replace

from services.scheduler.core.draft import Draft
from services.scheduler.core.shortage import is_there
from services.scheduler.core.state import Job
from shared.jobs.lifecycle import Change
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus


def tick(draft: Draft) -> None:
    """Resume, or put back into the queue's view, every job whose missing room is there now."""
    for job in draft.before.jobs.values():
        if job.short and not job.is_ended:
            _look(draft, draft.job(job.id) or job)


def _look(draft: Draft, job: Job) -> None:
    left = tuple(s for s in job.short if not is_there(s, draft.hosts))
    if left == job.short:
        return
    job = replace(job, short=left)
    ours = job.state.status is JobStatus.PAUSED and job.state.reason is Reason.DISK_FULL
    if not ours or left:
        draft.put(job)
        return
    draft.change(
        job, Change.RESUMED, reason=None, message=None, waiting_for=None,
        final_seq=None, final_metrics=None,
    )  # fmt: skip
