"""Attempts that hosts know and this database does not: it was restored from a backup, and the broker's store was lost too.

The host has the last word: such an attempt was given to it by the scheduler that was lost, so it is taken into the
books under its own number, running or ended, and its facts and telemetry, which the host sends again, count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from services.scheduler.core.assign import desired_run
from services.scheduler.core.draft import Draft
from services.scheduler.core.endings import Ending, settle
from services.scheduler.core.requests import reopen
from services.scheduler.core.state import Host, Job, Run
from services.scheduler.core.words import starting_on
from shared.events.calls import RunReport
from shared.jobs.lifecycle import Bilingual, Change
from shared.jobs.reasons import Reason

_OUTRUN = Ending(
    "lost",
    Reason.HOST_LOST,
    Bilingual(
        en="the scheduler's database was restored from a backup that is older than the run on the host",
        zh="调度器数据库由备份恢复，早于主机上的运行",
    ),
    # Not None: the api then counts the attempt as ended and takes what the host still has of it.
    final={"final_seq": {}},
)


def learn(draft: Draft, host_id: str, reports: Iterable[RunReport]) -> None:
    """Take every attempt into the books whose number is higher than any known. Such a number is never given again."""
    for report in sorted(reports, key=lambda r: (r.job, r.attempt)):
        job = draft.job(report.job)
        host = draft.host(host_id)
        if job is None or host is None or job.state.deleted:
            continue
        if report.attempt <= max(job.state.attempt, job.attempt_floor):
            continue
        draft.count("attempt_not_known_here", host=host_id, job=job.id, attempt=report.attempt)
        job = draft.put(replace(job, attempt_floor=report.attempt))
        if job.run is not None and job.run.host != host_id:
            continue  # two hosts with attempts of one job: the one in the books is fenced by the next number
        if job.run is not None:
            settle(draft, job, _OUTRUN)
        else:
            reopen(draft, job)
        job = draft.job(job.id) or job
        if job.waits:
            _adopt(draft, job, host, report.attempt)


def _adopt(draft: Draft, job: Job, host: Host, attempt: int) -> None:
    gpus = host.inventory.gpus if host.inventory else ()
    held = [g for g in gpus if g.held_by == job.id]
    indexes, uuids = tuple(g.index for g in held), tuple(g.uuid for g in held)
    run = Run(attempt, host.id, indexes, uuids, draft.now.wall)
    job = replace(job, run=run, hosts=tuple(dict.fromkeys((*job.hosts, host.id))), not_before=None)
    job = draft.change(
        job, Change.ASSIGNED, attempt=attempt, host=host.id, gpus=indexes, gpu_uuids=uuids,
        reason=Reason.ASSIGNED, waiting_for=starting_on(host.label).text, message=None, note=None,
        final_seq=None, final_metrics=None,
    )  # fmt: skip
    draft.attempt(job, "assigned")
    paths = {field: path for field, path, _ in job.frozen}
    draft.decide(desired_run(draft, job, host, run, paths))


def all_reported(hosts: Iterable[str], reported: frozenset[str]) -> bool:
    """Tell whether every one of `hosts` has named all attempts on its disk since the restore."""
    return set(hosts) <= reported
