"""One history from one seed: users and faults for a while, then calm, then every promise is checked once more."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

import structlog

from services.scheduler.core.decisions import AttemptSaved, CheckpointSaved
from services.scheduler.core.inputs import Tick
from services.scheduler.core.state import Limits
from shared.events.requests import (
    JobCancelRequested,
    JobDeclareLostRequested,
    JobDeleteRequested,
    JobPauseRequested,
    JobPriorityRequested,
    JobResumeRequested,
    JobRetryRequested,
    JobSubmitRequested,
)
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus
from tests.faults.simulation.agent import SimAgent
from tests.faults.simulation.api import ApiNode
from tests.faults.simulation.broker import Broker, Link
from tests.faults.simulation.checks import Checks
from tests.faults.simulation.engine import Engine, Machine, Thread, Violation
from tests.faults.simulation.faults import Faults
from tests.faults.simulation.host import AttemptDir, Plan, SimHost
from tests.faults.simulation.scheduler import NAMES, SchedulerNode

LIMITS = Limits(
    lease_ttl=10.0, grace=2.0, stop_after=20.0, kill_grace=4.0, requeue_margin=5.0,
    lost_after=timedelta(seconds=80), reboot_grace=10.0, vanished_after=60.0, backoff_first=0.5,
    backoff_last=8.0, refusal_exclusion=2.0, unknown_dependency=60.0,
)  # fmt: skip
"""The product's limits at a tenth or so, in the same proportions; the watchdog's tick stays 2 s."""
TIGHT = replace(
    LIMITS, stop_after=60.0, kill_grace=2.0, requeue_margin=2.2, lost_after=timedelta(seconds=300)
)
"""No slack: the margin is one tick and what drift makes of tick and grace, so that each factor of the bound is needed."""
PATIENCE = 2400.0
"""Virtual seconds after the last fault within which everything must have settled."""
DRIFT = 0.02
ENDLESS = 1_000_000
"""Steps of a job that only ends when it is cancelled: its user does so once all is calm."""


def job_id(number: int) -> str:
    """Return the id of a simulated job."""
    return f"00000000-0000-7000-8000-{number:012d}"


class World:
    """Everything of one seed."""

    def __init__(self, seed: int) -> None:
        """Build it; `run` lets it go."""
        self.engine = Engine(seed)
        self.rng = self.engine.rng
        rng = self.rng
        self.broker = Broker(self.engine)
        self.checks = Checks(self.engine)
        self.plans: dict[str, Plan] = {}
        self.tight = rng.random() < 0.3
        self.limits = TIGHT if self.tight else LIMITS
        spread = DRIFT * (1.0 if self.tight else rng.choice((0.0, 1.0, 1.0)))
        rates = (spread, spread, spread, -spread) if self.tight else (rng.uniform(-spread, spread),)
        machines = [Machine("control", 1.0 + rng.choice(rates))]
        shared: dict[str, set[int]] | None = {} if rng.random() < 0.7 else None
        self.hosts: dict[str, SimHost] = {}
        for number in range(rng.choice((2, 3, 4))):
            name = f"h{number + 1}"
            rates = (-spread, -spread, spread, rng.uniform(-spread, spread))
            machine = Machine(name, 1.0 + rng.choice(rates))
            gpus = tuple(f"GPU-{name}-{i}" for i in range(rng.choice((1, 2, 2, 3))))
            host = SimHost(self.engine, name, machine, gpus, shared, self.plans, lambda *_: None)
            host.on_trainers = lambda t, begins, host=host: self.checks.trainer(host, t, begins)  # type: ignore[misc]
            host.on_stop = partial(self._stopped, name)
            host.on_launch = lambda host=host: self.faults.strike_launch(host)  # type: ignore[misc]
            self.hosts[name] = host
        for name in (*NAMES, "api", *self.hosts):
            self.broker.links[name] = Link()
        self.scheduler = SchedulerNode(
            self.engine, self.broker, machines[0], self.limits, self._committed
        )
        self.schedulers = [self.scheduler]
        if rng.random() < 0.4:
            rival = Machine("control-2", 1.0 + rng.uniform(-spread, spread))
            self.schedulers.append(
                SchedulerNode(
                    self.engine, self.broker, rival, self.limits, self._committed, self.scheduler.db
                )
            )
        for node in self.schedulers:
            node.on_grant = self._granted
        self.api = ApiNode(self.engine, self.broker, Machine("web"), self.checks)
        self.heard: dict[str, float] = {}
        """When each host was last granted a lease."""
        self.agents: dict[str, SimAgent] = {}
        self.instances = 0
        self.paused: dict[str, bool] = {}
        self.jobs: list[str] = []
        self.faults = Faults(self)

    # parts that the faults start and stop

    def start_agent(self, host: str) -> None:
        """Start the agent of a host, unless one runs."""
        old = self.agents.get(host)
        if old is not None and old.process.alive:
            return
        self.instances += 1
        agent = SimAgent(self.hosts[host], self.broker, self.schedulers, self.api, self.instances)
        agent.crash_chance = self.faults.crash_chance
        agent.on_answer = lambda: self.faults.strike_answer(self.hosts[host])
        self.agents[host] = agent

    def _committed(self, inputs: Any, decisions: Any) -> None:
        for host in self.hosts.values() if decisions else ():
            for files in host.attempts.values():
                self.checks.files.setdefault((host.id, files.job, files.attempt), files)
                if files.shim_killed:
                    self.checks.excused.add((files.job, files.attempt))
        self.checks.committed(inputs, decisions)
        if len(inputs) == 1 and isinstance(inputs[0], Tick):
            self._lost_in_time(decisions)
        for one in decisions:
            if isinstance(one, AttemptSaved) and one.status == "assigned":
                self.faults.strike(self.hosts[one.host])
            elif isinstance(one, AttemptSaved) and one.status == "fenced":
                self.faults.strike_giving_away(self.hosts[one.host])
            elif isinstance(one, CheckpointSaved) and not one.checkpoint.deleted:
                self.checks.led_to(one.job, one.checkpoint, self.broker.numbers)

    def _lost_in_time(self, decisions: Any) -> None:
        """With `keep` time alone gives nothing away before `lost_after`, which goes by wall clocks and what was stored."""
        clocks = 2 * DRIFT * self.engine.now
        least = self.limits.lost_after.total_seconds() - self.limits.silent_after - clocks
        for one in decisions:
            if isinstance(one, AttemptSaved) and one.reason == Reason.HOST_LOST.value:
                silent = self.engine.now - self.heard.get(one.host, -1e9)
                if one.job not in self.checks.stop_policy and silent < least:
                    self.checks.fail("a host was lost too early", one.job, one.host, silent)

    def _granted(self, host: str, epoch: int) -> None:
        """A lease is granted by the leader alone: another one may have given away what the host goes on with."""
        self.heard[host] = self.engine.now
        row = self.scheduler.db.leader.row
        if row is None or row.epoch != epoch:
            self.checks.fail("a deposed leader granted a lease", host, epoch)

    def _stopped(self, host: str, files: AttemptDir) -> None:
        """An agent stops what is not wanted; while writes arrive in order, that is never what the books want to run."""
        job = self.scheduler.db.jobs[files.job]
        run, state = job.run, job.state
        mine = run is not None and (run.host, run.attempt) == (host, files.attempt)
        if mine and state.stop_requested is None and not state.deleted and not self.broker.late:
            self.checks.fail("a run that is wanted was stopped", files.job, files.attempt, host)

    # one history

    def run(self) -> None:
        """Raises Violation with the seed and the end of the trace."""
        for node in self.schedulers:
            node.start()
        self.api.start()
        for host in self.hosts:
            self.start_agent(host)
        self.engine.spawn(self.faults.process, self._users())
        self.engine.spawn(self.faults.process, self.faults.happen())
        until = self.rng.uniform(120.0, 200.0) if self.tight else self.rng.uniform(80.0, 130.0)
        self.engine.run(until)
        self.faults.end()
        self.engine.note("world", "calm")
        for job in self.jobs:
            if self.plans[job].steps == ENDLESS:
                self.api.act(JobCancelRequested, job)
        due = [self.engine.now + 5.0]

        def settled() -> bool:
            if self.engine.now < due[0]:
                return False
            due[0] = self.engine.now + 5.0
            return self._unsettled() is None

        if not self.engine.run(self.engine.now + PATIENCE, settled):
            self.checks.fail("nothing settled", self._unsettled())
        self.checks.judge_overlaps()
        self._final()

    # users

    def _users(self) -> Thread:
        rng = self.rng
        count = rng.randint(2, 4)
        pause = rng.choice((6.0, 15.0, 40.0))
        yield 1.0
        while True:
            if len(self.jobs) < count and rng.random() < 0.6:
                self._submit()
            elif self.jobs and not self.tight and not self._give_up_silent():
                self._act(rng.choice(self.jobs))
            yield rng.expovariate(1 / (pause if len(self.jobs) == count else 4.0))

    def _give_up_silent(self) -> bool:
        """Perhaps declare lost what a silent host keeps; tell whether that was done."""
        rows = self.api.main.rows["JobRow"]
        silent = [
            job for job in self.jobs
            if job not in self.checks.stop_policy and rows[job].reason == Reason.DISCONNECTED.value
        ]  # fmt: skip
        if not silent or self.rng.random() < 0.4:
            return False
        return self.api.act(JobDeclareLostRequested, self.rng.choice(silent))

    def _submit(self) -> None:
        rng = self.rng
        job = job_id(len(self.jobs) + 1)
        policies = ("keep", "stop_and_requeue", "stop_and_requeue")
        policy = rng.choice(policies[1:] if self.tight else policies)
        config: dict[str, Any] = {
            "algorithm": "sft", "model_path": "/models/tiny", "train_data_path": "/data/a.jsonl",
            "disconnect_policy": policy, "max_retries": rng.randint(0, 2),
            "num_gpus": rng.choice((1, 1, 1, min(len(h.gpus) for h in self.hosts.values()))),
        }  # fmt: skip
        if self.jobs and rng.random() < 0.2:
            config["depends_on"] = [rng.choice(self.jobs)]
        at = self.engine.wall(self.api.machine)
        event = JobSubmitRequested(
            job=job, req_n=1, at=at, name=f"j{len(self.jobs) + 1}", config=config
        )
        fails = rng.random() < 0.15 and not self.tight
        steps = ENDLESS if self.tight else rng.choice((6, 15, 60, ENDLESS, ENDLESS))
        self.plans[job] = Plan(
            steps=steps,
            save_every=rng.choice((3, 10, 200)),
            step_seconds=1.5 if steps == ENDLESS else rng.choice((0.4, 1.0, 1.5)),
            fails_at=rng.randint(1, 12) if fails else None,
            failure=rng.choice((Reason.CUDA_OOM, Reason.NAN_LOSS, None)),
            deaf=1.0 if self.tight else 0.05,
        )
        if self.api.submit(event):
            self.jobs.append(job)
            if policy == "stop_and_requeue":
                self.checks.stop_policy.add(job)

    def _act(self, job: str) -> None:
        kinds: list[type[Any]] = [
            JobCancelRequested, JobPauseRequested, JobPauseRequested, JobResumeRequested,
            JobResumeRequested, JobRetryRequested, JobRetryRequested, JobDeleteRequested,
            JobPriorityRequested,
        ]  # fmt: skip
        if job not in self.checks.stop_policy:
            kinds.append(JobDeclareLostRequested)
        kind = self.rng.choice(kinds)
        if kind is JobPriorityRequested:
            self.api.act(kind, job, priority=self.rng.randint(0, 100))
        elif self.rng.random() < 0.2:
            self.faults.drain()
        else:
            self.api.act(kind, job)

    # the end

    def _unsettled(self) -> str | None:
        """Return what is not yet as it must be in the end, or None."""
        books = self.scheduler.db
        for job_id_ in self.jobs:
            job = books.jobs.get(job_id_)
            if job is None:
                return f"{job_id_} was acknowledged and is not there"
            status = job.state.status
            asked = self.api.main.rows["JobRow"][job_id_]
            if job.state.req_n < asked.req_n:
                return f"{job_id_}: request {asked.req_n} is not answered, {job.state.req_n} is"
            if not (status.is_terminal or status is JobStatus.PAUSED or self._may_wait(job_id_)):
                return f"{job_id_} is {status} ({job.state.reason}), attempt {job.state.attempt}"
            live = self.api.ledger.jobs.get(job_id_)
            told = live is not None and (live.deleted > 0 or live.job_n == job.state.job_n)
            if asked.job_n != job.state.job_n or not told:
                return f"{job_id_}: the api has event {asked.job_n} of {job.state.job_n}"
        for host in self.hosts.values():
            if host.trainers:
                return f"{host.id} still trains {host.trainers[0].process.name}"
            waiting = self.agents[host.id].relay.spools
            if waiting:
                return f"{host.id} has unconfirmed facts of {waiting[0].job} {waiting[0].attempt}"
        left = [key for key in self.broker.keys if not key.endswith(".epoch")]
        if left:
            return f"desired states are left: {left}"
        return None

    def _may_wait(self, job_id_: str) -> bool:
        """Tell whether a job waits, with a reason, for one that is paused or waits itself."""
        books = self.scheduler.db.jobs
        job = books[job_id_]
        if not job.waits or job.state.reason is not Reason.WAITS_FOR_JOB:
            return False
        deps = [books[d] for d in job.after if d in books]
        return any(d.state.status is JobStatus.PAUSED or self._may_wait(d.id) for d in deps)

    def _final(self) -> None:
        """Nothing is missing: every attempt that ended in order is stored to its last number."""
        events = self.api.main.rows["JobEventRow"]
        for job in self.jobs:
            state = self.scheduler.db.jobs[job].state
            missing = [n for n in range(1, state.job_n + 1) if (job, n) not in events]
            if missing and not state.deleted:
                self.checks.fail("events are missing in the api's history", job, missing)
        for job, attempt in sorted(self.checks.folded):
            state = self.scheduler.db.jobs[job].state
            files = self.hosts[self.checks.host_of[job, attempt]].attempts.get((job, attempt))
            if state.deleted or files is None or not files.records:
                continue
            last = files.records[-1]
            if last["type"] != "run.exited.v1":
                continue
            row = self.api.ledger.attempts[job, attempt]
            wanted = {"run": last["seq"], "met": last["last_seq"]["met"]}
            found = {kind: row.seq[kind] for kind in wanted}  # type: ignore[index]
            if found != wanted:
                self.checks.fail("telemetry is missing", job, attempt, found, wanted)
            main = self.api.main.rows["AttemptRow"][job, attempt]
            if main.last_run_seq != last["seq"]:
                self.checks.fail("facts are missing", job, attempt, main.last_run_seq, last["seq"])


@dataclass(frozen=True)
class Outcome:
    """What a history without a violation came to."""

    seed: int
    seconds: float
    events: int
    attempts: int
    overlap: float
    seen: tuple[tuple[str, int], ...]


def simulate(seed: int) -> Outcome:
    """Run one seed. Raises Violation whose text has the seed and a readable trace."""
    world = World(seed)
    try:
        with quiet():
            world.run()
    except Violation as error:
        raise Violation(f"seed {seed}: {error}\n{story(world.engine)}") from None
    except Exception as error:  # whatever the product raises is a finding, and other seeds go on
        raise Violation(f"seed {seed}: {error!r}\n{story(world.engine)}") from error
    attempts = sum(world.checks.newest.values())
    for name, node in (("a scheduler", world.scheduler), *world.hosts.items()):
        if abs(node.machine.rate - 1.0) > 0.019:
            fast = node.machine.rate > 1.0
            who = "a host" if name in world.hosts else name
            world.engine.saw(f"the clock of {who} was {'fast' if fast else 'slow'} by 2 %")
    seen = tuple(sorted(world.engine.seen.items()))
    overlap = world.checks.most_overlap
    return Outcome(seed, world.engine.now, world.engine.events, attempts, overlap, seen)


def story(engine: Engine, lines: int = 160) -> str:
    """Return the end of the trace as text."""
    shown = engine.trace[-lines:]
    return "\n".join(
        f"{at:9.3f}  {who:14} {what} {' '.join(str(d) for d in detail)}"
        for at, who, what, detail in shown
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the product's log for the while."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


__all__ = ["LIMITS", "Outcome", "Violation", "World", "simulate"]
