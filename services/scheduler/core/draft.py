"""The next state in the making: a step writes changes here, and gets the new state and its decisions at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from services.scheduler.core.decisions import (
    AttemptSaved,
    Counted,
    Decision,
    HostSaved,
    JobSaved,
    Published,
)
from services.scheduler.core.order import Rank, Standing, Waits
from services.scheduler.core.readiness import Doom, standing
from services.scheduler.core.state import ClusterState, Host, Job, Limits, Moment
from services.scheduler.core.words import Why
from shared.events.requests import JobRequest
from shared.jobs.lifecycle import Change, evolve


class _Layered(dict[str, Any]):
    """What this step changed, over what was there."""

    def __init__(self, below: Mapping[str, Any]) -> None:
        super().__init__()
        self.below = below

    def get(self, key: str, default: Any = None) -> Any:
        if key in self:
            return super().__getitem__(key)
        return self.below.get(key, default)

    def merged(self) -> Mapping[str, Any]:
        return {**self.below, **self} if self else self.below


class Draft:
    """Copy-on-write over a ClusterState; local to one step, so the step stays a pure function."""

    def __init__(self, state: ClusterState, now: Moment, *, passive: bool = False) -> None:
        """Start from `state`; a passive draft decides nothing by itself and leaves that to the next tick."""
        self.passive = passive
        self.before = state
        self.now = now
        self.decisions: list[Decision] = []
        self.reservations = state.reservations
        self.next_order = state.next_order
        self._jobs = _Layered(state.jobs)
        self._hosts = _Layered(state.hosts)
        self._held = _Layered(state.held)
        self._dependents = _Layered(state.dependents)
        self._durable: set[str] = set()
        self._quiet: set[str] = set()
        self._stirred: dict[str, None] = {}
        self._everyone = False

    @property
    def limits(self) -> Limits:
        """Return the deadlines in force."""
        return self.before.limits

    # reading

    def job(self, job_id: str) -> Job | None:
        """Return a job as this step has left it."""
        found: Job | None = self._jobs.get(job_id)
        return found

    def jobs(self) -> tuple[Job, ...]:
        """Return all jobs as this step has left them."""
        return tuple(self._jobs.merged().values())

    def host(self, host_id: str) -> Host | None:
        """Return a host as this step has left it."""
        found: Host | None = self._hosts.get(host_id)
        return found

    @property
    def hosts(self) -> Mapping[str, Host]:
        """Return all hosts as this step has left them."""
        return _View(self._hosts)

    def held(self, job_id: str) -> tuple[JobRequest, ...]:
        """Return the requests of a job that wait for an earlier one."""
        found: tuple[JobRequest, ...] = self._held.get(job_id, ())
        return found

    def dependents(self, job_id: str) -> frozenset[str]:
        """Return the unfinished jobs that wait for this one."""
        found: frozenset[str] = self._dependents.get(job_id, frozenset())
        return found

    # writing

    def change(self, job: Job, change: Change, **fields: Any) -> Job:
        """Let a job evolve, publish that, and return it."""
        state = evolve(job.state, change, **fields)
        self.decisions.append(Published(change, self.now.wall, state))
        return self.put(replace(job, state=state))

    def put(self, job: Job, *, durable: bool = True) -> Job:
        """Store a job; its GPUs, its place in the queue and those that wait for it follow.

        `durable` False for what a restart of the scheduler may forget.
        """
        old = self.job(job.id)
        if durable:
            self._quiet.discard(job.id)
        elif job.id not in self._jobs:
            self._quiet.add(job.id)
        self._jobs[job.id] = job
        self._stirred[job.id] = None
        if (old.run if old else None) != job.run:
            self._move(job.id, old, job)
        was_ended = old is not None and old.is_ended
        if old is None or old.is_ended != job.is_ended or old.after != job.after:
            self._link(job, old)
        if was_ended != job.is_ended or (old and old.state.deleted != job.state.deleted):
            self._stirred.update(dict.fromkeys(sorted(self.dependents(job.id))))
        return job

    def put_host(self, host: Host, *, durable: bool = True) -> Host:
        """Store a host; `durable` False for what each heartbeat changes and nobody needs after a restart."""
        self._hosts[host.id] = host
        if durable:
            self._durable.add(host.id)
        return host

    def hold(self, job_id: str, requests: tuple[JobRequest, ...]) -> None:
        """Store the requests of a job that wait."""
        self._held[job_id] = requests

    def decide(self, decision: Decision) -> None:
        """Add a decision."""
        self.decisions.append(decision)

    def count(self, name: str, **detail: Any) -> None:
        """Note something refused or repeated."""
        self.decisions.append(Counted(name, detail))

    def attempt(self, job: Job, status: str, reason: str | None = None) -> None:
        """Record how far the open attempt of `job` has come."""
        run = job.run
        if run is not None:
            self.decide(
                AttemptSaved(job.id, run.attempt, run.host, run.gpus, status, self.now.wall, reason)
            )

    def stir(self, job_id: str) -> None:
        """Look again at where a job stands."""
        self._stirred[job_id] = None

    def stir_everyone(self) -> None:
        """Look again at every waiting job: a host that checkpoints lie on was lost or came back."""
        self._everyone = True

    # the end

    def finish(self) -> tuple[ClusterState, tuple[Decision, ...]]:
        """Return the next state and the decisions, in order."""
        queue_updates = self._settle_standings()
        queue = self.before.queue.changed(queue_updates)
        held = {job: requests for job, requests in self._held.merged().items() if requests}
        state = replace(
            self.before,
            jobs=self._jobs.merged(),
            hosts=self._hosts.merged(),
            queue=queue,
            dependents=self._dependents.merged(),
            reservations=self.reservations,
            untold=self._untold(),
            held=held if self._held else self.before.held,
            next_order=self.next_order,
        )
        saved: list[Decision] = [
            JobSaved(job) for key, job in self._jobs.items() if key not in self._quiet
        ]
        saved += [HostSaved(self._hosts[key]) for key in sorted(self._durable)]
        return state, (*self.decisions, *saved)

    def _untold(self) -> frozenset[str]:
        new = {k for k, job in self._jobs.items() if job.waits and job.state.waiting_for is None}
        return (self.before.untold - self._jobs.keys()) | new

    def _settle_standings(self) -> dict[str, tuple[Rank, Standing] | None]:
        updates: dict[str, tuple[Rank, Standing] | None] = {}
        if self._everyone:
            self._stirred.update(dict.fromkeys(self.before.queue.standing))
        view = _View(self._jobs)
        hosts = _View(self._hosts)
        while self._stirred:
            job_id = next(iter(self._stirred))
            del self._stirred[job_id]
            job = self.job(job_id)
            if job is None:
                continue
            found = standing(job, view, hosts, self.limits, self.now.wall)
            if isinstance(found, Doom):
                if not self.passive:
                    self._end(job, found)
                    continue
                why = Why(found.reason, found.message.en, found.message.zh)
                found = Waits(why, self.now.wall)
            updates[job_id] = None if found is None else (job.rank, found)
        return updates

    def _end(self, job: Job, doom: Doom) -> None:
        self.change(
            job,
            doom.change,
            reason=doom.reason,
            message=doom.message,
            waiting_for=None,
            finished_at=self.now.wall,
        )

    def _move(self, job_id: str, old: Job | None, new: Job) -> None:
        """Keep each host's book of who holds its GPUs; it is stored with the jobs, not with the host."""
        if old is not None and old.run is not None:
            host = self.host(old.run.host)
            if host is not None and job_id in host.runs:
                runs = {j: g for j, g in host.runs.items() if j != job_id}
                self.put_host(replace(host, runs=runs), durable=False)
        if new.run is not None:
            host = self.host(new.run.host)
            if host is not None:
                runs = {**host.runs, job_id: new.run.gpus}
                self.put_host(replace(host, runs=runs), durable=False)

    def _link(self, job: Job, old: Job | None) -> None:
        before = set(old.after) if old is not None and not old.is_ended else set()
        after = set() if job.is_ended else set(job.after)
        for dep in before - after:
            self._dependents[dep] = self.dependents(dep) - {job.id}
        for dep in after - before:
            self._dependents[dep] = self.dependents(dep) | {job.id}


class _View(Mapping[str, Any]):
    """Read-only look through a layer, for functions that take a Mapping."""

    def __init__(self, layer: _Layered) -> None:
        self._layer = layer

    def __getitem__(self, key: str) -> Any:
        found = self._layer.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Any:
        return iter(self._layer.merged())

    def __len__(self) -> int:
        return len(self._layer.merged())
