"""The scheduler's database in memory: rows as its store has them, one transaction a call, and how a restart reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.scheduler import codec
from services.scheduler.core.decisions import (
    CheckpointSaved,
    ConfigSaved,
    Decision,
    DesiredCleared,
    DesiredSet,
    HostSaved,
    JobSaved,
    Published,
    RequestHeld,
    RequestReleased,
)
from services.scheduler.core.state import Checkpoint, ClusterState, Host, Job, Limits, Moment
from services.scheduler.core.step import adopt, references
from shared.events.calls import ControlEntry
from shared.events.job import JOB_EVENTS, JobEventBase
from shared.events.requests import JobRequest
from tests.faults.simulation.leading import LeaderSession


@dataclass
class DesiredRow:
    """See services.scheduler.models."""

    entry: ControlEntry | None
    outbox_id: int
    version: int = 1
    written_version: int = 0
    written_epoch: str = ""


@dataclass
class OutboxRow:
    """An event and the epoch it was published in."""

    id: int
    event: JobEventBase
    published: str | None = None


@dataclass
class Database:
    """What survives the scheduler; `apply` is one transaction."""

    jobs: dict[str, Job] = field(default_factory=dict)
    checkpoints: dict[tuple[str, str, int], Checkpoint] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    held: dict[tuple[str, int], JobRequest] = field(default_factory=dict)
    outbox: list[OutboxRow] = field(default_factory=list)
    desired: dict[tuple[str, str], DesiredRow] = field(default_factory=dict)
    positions: dict[str, tuple[str, int]] = field(default_factory=dict)
    leader: LeaderSession = field(default_factory=LeaderSession)
    contested: bool = False
    """There is a second scheduler."""

    def apply(self, decisions: Sequence[Decision]) -> None:
        """Store what a step decided."""
        for one in decisions:
            match one:
                case JobSaved(job):
                    self.jobs[job.id] = replace(job, checkpoints=())
                case ConfigSaved(job_id, config):
                    self.configs[job_id] = dict(config)
                case CheckpointSaved(job_id, kept):
                    self.checkpoints[job_id, kept.host, kept.step] = kept
                case HostSaved(host):
                    self.hosts[host.id] = host
                case RequestHeld(request):
                    self.held[request.job, request.req_n] = request
                case RequestReleased(job_id, req_n):
                    self.held.pop((job_id, req_n), None)
        for one in decisions:
            if isinstance(one, Published):
                event = JOB_EVENTS[one.change](at=one.at, state=one.state)
                self.outbox.append(OutboxRow(len(self.outbox) + 1, event))
        self._apply_desired(decisions)

    def _apply_desired(self, decisions: Sequence[Decision]) -> None:
        """Keep the last word about each run, to be written behind every event decided so far."""
        newest = {
            (d.host, d.job): d for d in decisions if isinstance(d, DesiredSet | DesiredCleared)
        }
        for key, wanted in newest.items():
            entry = None
            if isinstance(wanted, DesiredSet):
                config = self.configs.get(wanted.job, {}) if wanted.desired == "run" else {}
                entry = codec.desired_entry(wanted, config)
            old = self.desired.get(key)
            row = DesiredRow(entry, len(self.outbox))
            if old is not None:
                row.version = old.version + 1
                row.written_version, row.written_epoch = old.written_version, old.written_epoch
            self.desired[key] = row

    def load_jobs(self, ids: Sequence[str]) -> list[Job]:
        """Return those of `ids` that exist, as a restart finds them."""
        found = []
        for job in (self.jobs[i] for i in ids if i in self.jobs):
            run = None if job.run is None else replace(job.run, missing_since=None)
            mine = tuple(c for k, c in self.checkpoints.items() if k[0] == job.id and not c.deleted)
            found.append(replace(job, run=run, checkpoints=mine))
        return found

    def load(self, now: Moment, limits: Limits) -> ClusterState:
        """Return the cluster; see services.scheduler.store.load."""
        ids = [job.id for job in self.jobs.values() if not job.is_ended]
        jobs = {job.id: job for job in self.load_jobs(ids)}
        wanted = {ref for job in jobs.values() for ref in references(job)} - jobs.keys()
        jobs |= {job.id: job for job in self.load_jobs(sorted(wanted))}
        hosts = {}
        for host in self.hosts.values():
            seen = None if host.seen is None else Moment(host.seen.wall, now.boot)
            hosts[host.id] = replace(host, seen=seen, boot_seen=now.boot, runs={}, stops={})
        for (host_id, job_id), row in self.desired.items():
            owner = jobs.get(job_id)
            run = owner.run if owner else None
            if row.entry is None or row.entry.desired != "stop" or host_id not in hosts:
                continue
            if run is None or (run.host, run.attempt) != (host_id, row.entry.attempt):
                stops = {**hosts[host_id].stops, job_id: row.entry.attempt}
                hosts[host_id] = replace(hosts[host_id], stops=stops)
        held: dict[str, tuple[JobRequest, ...]] = {}
        for (job_id, _), request in sorted(self.held.items(), key=lambda kv: kv[0]):
            held[job_id] = (*held.get(job_id, ()), request)
        last = max((job.order for job in self.jobs.values()), default=0)
        state = ClusterState(hosts=hosts, held=held, next_order=last + 1, limits=limits)
        return adopt(state, sorted(jobs.values(), key=lambda job: job.order), now)
