"""Attempts that hosts know and this database does not: it was restored from a backup, and the broker's store was lost too.

Such a number is never given away again, and an attempt that runs under it is superseded by a higher one: what it
said is unknown here, so going on from the checkpoints that are known is the only course without a hole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from services.scheduler.core.draft import Draft
from services.scheduler.core.endings import Ending, settle
from shared.events.calls import RunReport
from shared.jobs.lifecycle import Bilingual
from shared.jobs.reasons import Reason

_OUTRUN = Ending(
    "lost",
    Reason.HOST_LOST,
    Bilingual(
        en="the scheduler's database was restored from a backup that is older than the run on the host; it is run again",
        zh="调度器数据库由备份恢复，早于主机上的运行，因此重新运行",
    ),
)


def learn(draft: Draft, host_id: str, reports: Iterable[RunReport]) -> None:
    """Take note of every attempt number that is higher than any known; close what such an attempt has outrun."""
    for report in sorted(reports, key=lambda r: (r.job, r.attempt)):
        job = draft.job(report.job)
        if job is None or report.attempt <= max(job.state.attempt, job.attempt_floor):
            continue
        draft.count("attempt_not_known_here", host=host_id, job=job.id, attempt=report.attempt)
        job = draft.put(replace(job, attempt_floor=report.attempt))
        if job.run is not None and job.run.host == host_id:
            settle(draft, job, _OUTRUN)


def all_reported(hosts: Iterable[str], reported: frozenset[str]) -> bool:
    """Tell whether every one of `hosts` has named all attempts on its disk since the restore."""
    return set(hosts) <= reported
