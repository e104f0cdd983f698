"""Silence, return, reboot and loss of hosts: what a heartbeat and the passing of time change.

A host is silent when its lease is older than ttl + drift + grace, and deaf when for as long it has told that our
answers do not arrive: either way it is offline. `keep`: its jobs wait for it, until `lost_after` or
until the user writes it off. `stop_and_requeue`: the shim on the host stops the trainer at its own deadline, and the
job is placed again only when that deadline, drift and the kill have surely passed (reliability.md section 2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.scheduler.core import words
from services.scheduler.core.draft import Draft
from services.scheduler.core.endings import Ending, settle, stale_stopped, stop_stale
from services.scheduler.core.floors import learn
from services.scheduler.core.inputs import Beat
from services.scheduler.core.state import ClusterState, Host, Job, Limits, Moment, Phase
from shared.disk.levels import Volume
from shared.events.calls import Heartbeat, HeartbeatReply, HeldRun, RunReport
from shared.jobs.lifecycle import Bilingual, Change
from shared.jobs.reasons import Reason
from shared.jobs.status import DisconnectPolicy, JobStatus

RETIRED_REMEMBERED = 8
ANSWER_SECONDS = 3.0
"""An agent takes no answer that comes later than this after its question."""
_VANISHED = Ending(
    "failed",
    Reason.EXIT_UNKNOWN,
    Bilingual(en="the host does not know this run any more", zh="主机上已没有这次运行的记录"),
)
_NEVER_TAKEN = Ending(
    "lost",
    Reason.START_FAILED,
    Bilingual(en="the host did not take the run in time", zh="主机未及时接收这次运行"),
)
"""Fenced, since the host might still come to it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a heartbeat does not renew the lease."""

    error: str


def refusal(state: ClusterState, beat: Beat, now: Moment) -> Refusal | None:
    """Return why this agent may not speak for its host, or None.

    A new instance on the same boot is the same agent restarted: a lock on the host admits one at a time.
    Another boot while the lease lives, or an instance that was replaced and speaks again, is a second agent. So is one
    that began before the one that speaks for the host: it may be dead, and its heartbeat late.
    """
    host = state.hosts.get(beat.host)
    if host is None:
        return None
    if host.forgotten:
        return Refusal("forgotten")
    if beat.heartbeat.instance == host.instance:
        return None
    overtaken = beat.heartbeat.boot_id == host.boot_id and 0 < beat.heartbeat.began < host.began
    if overtaken or beat.heartbeat.instance in host.retired:
        return Refusal("identity_in_use")
    alive = host.seen is not None and now.boot - host.seen.boot <= state.limits.lease_ttl
    if alive and host.instance and beat.heartbeat.boot_id != host.boot_id:
        return Refusal("identity_in_use")
    return None


def reply(
    state: ClusterState, beat: Beat, now: Moment, ctl_epoch: str, epoch: int, restored: str = ""
) -> HeartbeatReply:
    """Return the answer to a heartbeat, for the state before it is applied; `restored` names the last restore."""
    refused = refusal(state, beat, now)
    host = state.hosts.get(beat.host)
    error = refused.error if refused else None
    return HeartbeatReply(
        ok=error is None,
        error="forgotten" if error == "forgotten" else "identity_in_use" if error else None,
        lease_seconds=state.limits.lease_ttl,
        ctl_epoch=ctl_epoch,
        drained=host.drained if host else False,
        scheduler_epoch=epoch,
        restored=restored,
    )


def held(state: ClusterState, host_id: str, now: Moment) -> tuple[HeldRun, ...]:
    """Return the attempts that are a host's for as long as a lease that is granted now; call it after the heartbeat.

    `ctl` may lag behind the books, so the host begins nothing that is to be requeued on silence before it is named here.
    """
    host, limits = state.hosts.get(host_id), state.limits
    lease = limits.lease_ttl * (1 + limits.drift)
    found = []
    for job_id in sorted(host.runs) if host is not None else ():
        job = state.jobs.get(job_id)
        run = job.run if job is not None else None
        if run is None:
            continue
        missing = 0.0 if run.missing_since is None else now.boot - run.missing_since
        if missing + lease < limits.vanished_after:
            found.append(HeldRun(job=job_id, attempt=run.attempt))
    return tuple(found)


def beat(draft: Draft, one: Beat) -> None:
    """Renew a lease; a host that was silent is back, and what it says about its runs is compared with our books."""
    if refusal(draft.before, one, draft.now) is not None:
        draft.count("heartbeat_refused", host=one.host)
        return
    heartbeat = one.heartbeat
    old = draft.host(one.host) or Host(one.host, heartbeat.inventory.label)
    was_lost = old.lost
    host = _renewed(old, heartbeat, draft.now, draft.limits.silent_after)
    durable = _is_worth_storing(old, host, draft.limits.silent_after)
    draft.put_host(host, durable=durable)
    for job_id in sorted(host.runs):
        if host.online and not old.online:
            _reconnect(draft, draft.job(job_id))
        elif old.online and not host.online:
            _disconnect(draft, draft.job(job_id))
    if was_lost or _shared(old) != _shared(host):
        draft.stir_everyone()
    reports = {(r.job, r.attempt): r for r in heartbeat.runs}
    learn(draft, one.host, heartbeat.runs)
    for job_id in sorted(host.runs):
        _vouch(draft, draft.job(job_id), reports)
    _stop_strays(draft, one.host, reports)


def tick(draft: Draft) -> None:
    """Let time act on leases, on runs nobody vouches for, and on jobs whose waiting is due."""
    for host in list(draft.before.hosts.values()):
        _age(draft, host)
    for host in list(draft.before.hosts.values()):
        for job_id in sorted(host.runs):
            job = draft.job(job_id)
            if job is not None and job.run is not None:
                _watch(draft, job, draft.host(host.id) or host)
    for job_id, due in draft.before.queue.due.items():
        if due <= draft.now.wall:
            draft.stir(job_id)


def _age(draft: Draft, host: Host) -> None:
    seen = host.seen
    if host.forgotten or seen is None:
        return
    now = draft.now
    heard_out = seen.boot if host.deaf_since is None else min(seen.boot, host.deaf_since)
    if host.online and now.boot - heard_out > draft.limits.silent_after:
        host = draft.put_host(replace(host, online=False))
        for job_id in sorted(host.runs):
            _disconnect(draft, draft.job(job_id))
    if not host.online and not host.lost and now.wall - seen.wall > draft.limits.lost_after:
        draft.put_host(replace(host, lost=True))
        draft.stir_everyone()


def _watch(draft: Draft, job: Job, host: Host) -> None:
    """End the attempt of a job whose host is lost, rebooted, or does not vouch for it."""
    run, limits, now = job.run, draft.limits, draft.now
    assert run is not None
    if not host.online:
        if _is_given_up(job, host, now, limits):
            if host.lost:
                job = replace(job, lost_hosts=tuple(sorted({*job.lost_hosts, host.id})))
            settle(draft, draft.put(job), Ending("lost", Reason.HOST_LOST))
        return
    rebooted = run.boot_id is not None and run.boot_id != host.boot_id
    if rebooted and now.boot - host.boot_seen > limits.reboot_grace:
        settle(draft, job, Ending("failed", Reason.HOST_REBOOTED))
    elif _vanished(run.missing_since, host, limits.vanished_after):
        settle(draft, job, _NEVER_TAKEN if run.phase is Phase.ASSIGNED else _VANISHED)
    elif run.phase is Phase.ASSIGNED and run.missing_since is not None and host.full is not None:
        _say_full(draft, job, host.full, host.label)


def _is_given_up(job: Job, host: Host, now: Moment, limits: Limits) -> bool:
    """Tell whether a job need not wait for its silent host any longer.

    `lost` goes by the wall clock, which may jump and whose last stored word may be old; the shim goes by its boot clock.
    """
    if job.policy is not DisconnectPolicy.STOP_AND_REQUEUE:
        return host.lost
    return host.seen is not None and now.boot - host.seen.boot > limits.requeue_after


def _say_full(draft: Draft, job: Job, volume: Volume, label: str) -> None:
    """Say why the run does not begin: a host whose disk is full may be unable to write even that; it keeps trying."""
    why, told = words.no_room(label, volume), job.state.waiting_for
    if job.state.stop_requested is None and (told is None or told.en != why.en):
        draft.change(job, Change.UPDATED, reason=why.reason, waiting_for=why.text)


def _vanished(since: float | None, host: Host, after: float) -> bool:
    """Tell whether the host's own heartbeats went on for so long without the run: its silence is another matter."""
    return since is not None and host.seen is not None and host.seen.boot - since > after


def _renewed(old: Host, heartbeat: Heartbeat, now: Moment, silent_after: float) -> Host:
    deaf_since = _deaf_since(old, heartbeat, now)
    retired = old.retired
    if old.instance and heartbeat.instance != old.instance:
        retired = (*retired, old.instance)[-RETIRED_REMEMBERED:]
    return replace(
        old,
        label=heartbeat.inventory.label or old.label,
        inventory=heartbeat.inventory,
        online=deaf_since is None or (old.online and now.boot - deaf_since <= silent_after),
        lost=False,
        seen=now,
        deaf_since=deaf_since,
        instance=heartbeat.instance,
        retired=retired,
        boot_id=heartbeat.boot_id,
        began=heartbeat.began,
        boot_seen=old.boot_seen if heartbeat.boot_id == old.boot_id else now.boot,
    )


def _deaf_since(old: Host, heartbeat: Heartbeat, now: Moment) -> float | None:
    """Return since when our answers do not arrive; None while they do.

    The agent counts from the heartbeat whose answer it heard, and we answered the last one that came: were that answer
    heard, both would be equally long ago, but for the time that an answer may take.
    """
    if old.seen is None or heartbeat.instance != old.instance:
        return None
    if heartbeat.unanswered_seconds <= now.boot - old.seen.boot + ANSWER_SECONDS:
        return None
    return now.boot if old.deaf_since is None else old.deaf_since


def _is_worth_storing(old: Host, new: Host, silent_after: float) -> bool:
    """Tell whether a restart of the scheduler must find the change; the rest comes with the next heartbeat.

    A scheduler that found an old time stores the new one at once: it may end before it does so in its turn.
    """
    if old.seen is None or new.seen is None or _age_of(old.seen, new.seen) > silent_after:
        return True
    kept = ("label", "online", "lost", "instance", "boot_id")
    return any(getattr(old, name) != getattr(new, name) for name in kept) or (
        _hardware(old) != _hardware(new)
    )


def _age_of(then: Moment, now: Moment) -> float:
    """Return seconds by the wall clock, which a restart of the scheduler outlives."""
    return abs((now.wall - then.wall).total_seconds())


def _hardware(host: Host) -> tuple[object, ...]:
    inventory = host.inventory
    if inventory is None:
        return ()
    gpus = tuple((g.index, g.uuid, g.name, g.memory_mib) for g in inventory.gpus)
    return (inventory.device, gpus, inventory.shared_paths, inventory.agent_version)


def _shared(host: Host) -> tuple[str, ...]:
    return host.inventory.shared_paths if host.inventory else ()


def _disconnect(draft: Draft, job: Job | None) -> None:
    if job is not None and job.run is not None and job.state.reason is not Reason.DISCONNECTED:
        draft.change(job, Change.DISCONNECTED, reason=Reason.DISCONNECTED)


def _reconnect(draft: Draft, job: Job | None) -> None:
    if job is None or job.run is None or job.state.reason is not Reason.DISCONNECTED:
        return
    reason: Reason | None = None
    if job.state.stop_requested:
        reason = Reason.STOPPING
    elif job.state.status is JobStatus.PENDING:
        reason = Reason.ASSIGNED
    draft.change(job, Change.RECONNECTED, reason=reason)


def _vouch(draft: Draft, job: Job | None, reports: dict[tuple[str, int], RunReport]) -> None:
    """Note since when a live host does not report an attempt of its own as alive."""
    if job is None or job.run is None:
        return
    run = job.run
    report = reports.get((job.id, run.attempt))
    fine = report is not None and report.alive
    if fine == (run.missing_since is None):
        return
    since = None if fine else draft.now.boot
    draft.put(replace(job, run=replace(run, missing_since=since)), durable=False)


def _stop_strays(draft: Draft, host_id: str, reports: dict[tuple[str, int], RunReport]) -> None:
    """Have attempts stopped that are alive but do not count, and forget those that are gone."""
    host = draft.host(host_id)
    if host is None:
        return
    for (job_id, attempt), report in sorted(reports.items()):
        job = draft.job(job_id)
        here = job is not None and job.run is not None and job.run.host == host_id
        if job is not None and job.state.deleted:
            continue
        if report.alive and not here and host.stops.get(job_id) != attempt:
            draft.count("stale_attempt_alive", host=host_id, job=job_id, attempt=attempt)
            stop_stale(draft, host_id, job_id, attempt)
    alive = {job_id for (job_id, _), report in reports.items() if report.alive}
    for job_id in sorted(set(host.stops) - alive):
        stale_stopped(draft, host_id, job_id)
