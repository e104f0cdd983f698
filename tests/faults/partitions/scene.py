"""A stack, hosts behind lines that can be cut, a job on each, readers of every job; and the judgement of all of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

import httpx2

from services.gpu_agent.core import loglines
from tests.e2e.pacer import Pacer
from tests.e2e.stack import Stack, until
from tests.faults.checker import AttemptSeen, Observation, check
from tests.faults.observing import Sight, observe, stored_steps
from tests.faults.partitions.cases import READ_SECONDS, SETTINGS, SILENT_AFTER, Case, terms
from tests.faults.partitions.cuts import Cut, Line, Way
from tests.faults.partitions.follower import Follower, read_logs
from tests.faults.partitions.reading import LogSeen, Reading, Terms, judge
from tests.faults.partitions.second_host import SecondHost
from tests.faults.process_table import leftovers, processes_of
from tests.faults.scene import Report
from tests.faults.watcher import Watcher, jobs_folder
from tests.faults.workload import Workload
from trainyard import Job

SAVE_STEPS = 10
START_SECONDS = 120.0
BACK_SECONDS = 60.0
HOLD_SECONDS = 1.5
"""So much longer a cut lasts after users could read of it."""
SHELTER = "shelter"


class Scene:
    """Everything is stopped and removed at the exit, also after a failure."""

    def __init__(
        self,
        stack: Stack,
        lines: Callable[[str], Line],
        model: Path,
        seed: int,
        heal: float,
        steps: int = 240,
    ) -> None:
        """`lines`: the way to the broker of the host with this label; `heal`: see `Terms`."""
        self.steps = steps
        self.stack = stack
        self.lines = lines
        self.terms = terms(heal)
        self.rng = random.Random(seed)
        self.workload = Workload(stack, model, self.rng)
        self.homes = [stack.home]
        """The stack's own and each host's."""
        self.watcher = Watcher(self.homes)
        self.beside: set[int] = set()
        """Processes of the stack's home that somebody else has started and ends."""
        self.hosts: list[SecondHost] = []
        self.cases: dict[str, Case] = {}
        """By label of the host."""
        self.followers: dict[str, Follower] = {}
        self.pacer = Pacer([])
        self.moved: dict[tuple[str, int], tuple[int, ...]] = {}
        """Attempts given up → what was stored of them when the next one ran elsewhere and their host was still away."""
        self.heard_until: dict[tuple[str, int], int] = {}
        """Of these, those whose host heard nothing → the last step before that."""
        self.trained: dict[tuple[str, int], tuple[int, int]] = {}
        """Host and number of the cut → steps that its first attempt had made when the cut came, and when it was over."""
        self.stale = 0
        """Items of attempts given up that the api had counted in the end."""
        self._failures: list[BaseException] = []
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        try:
            self.stack.home.mkdir(parents=True, exist_ok=True)
            self.stack.start()
        except BaseException:
            self.__exit__()
            raise
        self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        stack = self.stack
        for ending in (
            self.pacer.stop,
            *(f.stop for f in self.followers.values()),
            self.watcher.stop,
        ):
            with contextlib.suppress(Exception):
                ending()
        for host in self.hosts:
            host.stop()
            host.line.close()
        if stack.process is not None and stack.process.poll() is None:
            stack.stop()
        for pid in {p for home in self.homes for p in processes_of(home)} - self.beside:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # setting up

    def host(self, label: str, case: Case | None, slots: int = 1) -> SecondHost:
        """Begin to join one host."""
        env = {
            **SETTINGS,
            "TRAINYARD_AGENT_SLOTS": str(slots),
            "TRAINYARD_AGENT_RULES": "false",  # no job here asks for rewards
        }
        passed = ("TRAINYARD_DATA_ROOTS", "PYTHONPATH")
        env |= {name: self.stack.env[name] for name in passed if name in self.stack.env}
        if case is None:  # what moves there is to be at work soon
            env["TRAINYARD_AGENT_ZYGOTE"] = "true"
        if case is None or case.shared:
            shared = self.stack.home / "shared"
            shared.mkdir(exist_ok=True)
            env |= {
                "TRAINYARD_AGENT_SHARED_PATHS": str(shared),
                "TRAINYARD_CHECKPOINT_DIR": str(shared / "checkpoints"),
            }
        home = self.stack.home / "hosts" / label
        found = SecondHost(self.stack, home, label, self.lines(label), env)
        self.hosts.append(found)
        self.homes.append(home)
        found.join()
        if case is not None:
            self.cases[label] = case
        return found

    def set_up(self, cases: list[Case]) -> None:
        """Join a host for each case and bring a job to its first announced checkpoint on each; then a shelter.

        One begins after the other, and stands still until all are there: many that import at once leave no heartbeat its time.
        """
        named = [(f"box{n}", case) for n, case in enumerate(cases)]
        begun = [self.host(label, case) for label, case in named]
        places = sum(case.shared for case in cases)
        shelter = self.host(SHELTER, None, slots=places + 1) if places else None
        for host in begun:
            host.start()
        # what is assigned with a host's first heartbeat may have to be assigned again
        for label in self.cases:
            until(lambda name=label: self._is_online(name), START_SECONDS, label, self.stack)  # type: ignore[misc]
        self.pacer = Pacer([host.jobs_dir for host in begun], every=0.4, longer=0.01)
        self.pacer.start()
        for label, case in named:
            # who may move cannot be pinned: hosts that are alike are filled in any order
            pin = {} if case.may_move else {"host": label}
            job = self.workload.submit(
                max_steps=self.steps, save_steps=SAVE_STEPS, save_total_limit=100,
                num_epochs=100, context_length=64,
                disconnect_policy=case.policy, **pin,
            )  # fmt: skip
            follower = Follower(
                self.stack.client.url, self.stack.client.token, job, self.rng.randrange(1 << 30)
            )
            self.followers[job] = follower
            follower.start()
            until(
                lambda j=job: self._has_checkpoint(j),
                START_SECONDS,
                f"{job} has a checkpoint",
                self.stack,
            )  # type: ignore[misc]
            self.pacer.held.add(job)
        if shelter is not None:  # not before: the jobs are to begin on hosts that will be cut off
            shelter.start()
            self.pacer.jobs_dirs.append(shelter.jobs_dir)
            until(lambda: self._is_online(SHELTER), 60, "the shelter is online", self.stack)
        self.pacer.held.clear()

    def _has_checkpoint(self, job: str) -> bool:
        return any(c.step > 0 for c in self.stack.client.jobs.checkpoints(job))

    def _is_online(self, label: str) -> bool:
        return any(h.label == label and h.online for h in self.stack.client.hosts.list())

    # cutting

    def cut_all(self) -> None:
        """Cut and heal every host as its case says, side by side; wait until the user reads that all are back."""
        jobs = {self.stack.client.jobs.get(job).host: job for job in self.followers}
        threads = [
            threading.Thread(target=self._guarded, args=(host, jobs[host.label]))
            for host in self.hosts
            if host.label in self.cases
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
        if self._failures:
            raise self._failures[0]

    def _guarded(self, host: SecondHost, job: str) -> None:
        try:
            self._cut(host, job, self.cases[host.label])
        except BaseException as error:  # noqa: BLE001 - told to the test that waits for it
            self._failures.append(error)

    def _cut(self, host: SecondHost, job: str, case: Case) -> None:
        for n, one in enumerate(case.breaks):
            if n:
                until(lambda: self._is_back(host, job), BACK_SECONDS, f"{job} is back", self.stack)
                time.sleep(case.pause)
            began, before = time.time(), self._steps_made(host, job)
            host.line.cut(one.way)
            if one.seconds is not None:
                time.sleep(one.seconds)
            else:
                self._until_read(job, case)
            self.trained[host.label, n] = before, self._steps_made(host, job)
            self._note_moved(job)
            if one.way is Way.TO_AGENT and (job, 1) in self.moved:
                self.heard_until[job, 1] = before
            host.line.heal()
            host.cuts.append(Cut(one.way, began, time.time()))
        online = f"{host.label} is back"
        until(lambda: self._is_online(host.label), BACK_SECONDS, online, self.stack)
        if case.policy == "keep":
            self._until_cleared(host, job)

    def _until_cleared(self, host: SecondHost, job: str) -> None:
        """Let the job train on until nobody reads of the cut any more, or until that is too late: the judge says so."""
        deadline = host.cuts[-1].healed + self.terms.heal + HOLD_SECONDS
        while not self._is_back(host, job) and time.time() < deadline:
            time.sleep(0.1)

    def _until_read(self, job: str, case: Case) -> None:
        """Wait until users read what the cut does to the job, and a moment more; what never comes the judge reports."""
        deadline = time.monotonic() + READ_SECONDS
        while not self._is_read(job, case) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(HOLD_SECONDS)

    def _is_read(self, job: str, case: Case) -> bool:
        shown = self.stack.client.jobs.get(job)
        if case.policy == "keep":
            return shown.reason == "disconnected"
        if case.shared:
            return shown.attempt >= 2 and shown.status == "RUNNING"
        return shown.status == "PENDING"

    def _is_back(self, host: SecondHost, job: str) -> bool:
        shown = self.stack.client.jobs.get(job)
        return self._is_online(host.label) and (shown.status, shown.reason) == ("RUNNING", None)

    def _steps_made(self, host: SecondHost, job: str) -> int:
        events = host.jobs_dir / job / "attempts" / "1" / "events.jsonl"
        return events.read_bytes().count(b'"type":"metric"')

    def _note_moved(self, job: str) -> None:
        shown = self.stack.client.jobs.get(job)
        if shown.attempt < 2:
            return
        if any(
            e["type"] == "job.requeued" and e["reason"] == "host_lost"
            for e in self.stack.client.jobs.events(job)
        ):
            self.moved[job, 1] = stored_steps(self.stack.home, job, 1)

    # judging

    def finish(self, name: str, seed: int, settle: float = 400.0) -> tuple[Report, Observation]:
        """Let the jobs run free to their end, judge everything, stop the stack and look for what it left."""
        self.pacer.free |= set(self.followers)
        ended = self.workload.settle(settle)
        for follower in self.followers.values():
            follower.catch_up(120)
        seen = observe(self._sight())
        self.stale = self._stale_items()
        readings = [
            self._reading(ended[job], follower, seen) for job, follower in self.followers.items()
        ]
        for follower in self.followers.values():
            follower.stop()
        self.pacer.stop()
        for host in self.hosts:
            host.stop()
        self.stack.stop()
        left = tuple(text for home in self.homes for text in leftovers(home, 60, self.beside))
        seen = replace(seen, orphans=(*seen.orphans, *left))
        violations = check(seen) + [v for one in readings for v in judge(one)]
        faults = Counter(
            f"cut {cut.way}{' beyond the lease' if cut.seconds > SILENT_AFTER else ''}, {case.policy}"
            for host in self.hosts if (case := self.cases.get(host.label)) for cut in host.cuts
        )  # fmt: skip
        attempts = sum(len(job.attempts) for job in seen.jobs)
        report = Report(
            name, seed, violations, faults, len(seen.jobs), attempts, time.monotonic() - self._began
        )
        return report, seen

    def _sight(self) -> Sight:
        assert self.stack.process is not None
        roots = [(self.stack.home, self.stack.process.pid)]
        roots += [(host.home, host.agent_pid) for host in self.hosts]
        return Sight(
            self.stack, self.workload, self.watcher, self.homes, self.moved, self.heard_until,
            roots=roots, beside=self.beside,
        )  # fmt: skip

    def _stale_items(self) -> int:
        """Return how many items of fenced attempts the api has counted."""
        headers = (
            {"Authorization": f"Bearer {self.stack.client.token}"}
            if self.stack.client.token
            else {}
        )
        text = httpx2.get(f"{self.stack.client.url}/metrics", headers=headers, timeout=120).text
        lines = [
            line
            for line in text.splitlines()
            if line.startswith('trainyard_stale_events_total{reason="fenced"}')
        ]
        return int(float(lines[0].split()[1])) if lines else 0

    def _reading(self, job: Job, follower: Follower, seen: Observation) -> Reading:
        host = next(h for h in self.hosts if h.label == _first_host(follower))
        found = next(j for j in seen.jobs if j.uuid == job.uuid)
        lines = read_logs(self.stack.client, job.uuid)
        data = self.stack.client.jobs.metrics(job.uuid, ["loss"], points=10_000)
        points = zip(data.x, data.series["loss"], strict=True)
        return Reading(
            job.uuid, self.cases[host.label].policy, self._terms(), tuple(host.cuts), tuple(follower.reads),
            tuple(follower.frames), follower.replay(),
            logs=tuple(self._log(job.uuid, a, lines) for a in found.attempts),
            chart=tuple(int(x) for x, loss in points if x is not None and loss is not None),
            max_steps=self.steps,
        )  # fmt: skip

    def _terms(self) -> Terms:
        """Return the times in force, longer by what agent, broker, scheduler and api were each starved of."""
        late, terms = 4 * self.watcher.starved, self.terms
        return replace(
            terms, beat=terms.beat + late, late=terms.late + late,
            late_deaf=terms.late_deaf + late, heal=terms.heal + late,
        )  # fmt: skip

    def _log(self, job: str, attempt: AttemptSeen, lines: tuple[tuple[int, str], ...]) -> LogSeen:
        folders = [f for home in self.homes for f in jobs_folder(home).glob(f"{job}/attempts/*")]
        folders.sort(key=lambda f: int(f.name))
        folder = next(f for f in folders if int(f.name) == attempt.number)
        starts = [
            _log_offset(f)
            for f in folders
            if f.parent == folder.parent and int(f.name) >= attempt.number
        ]
        log = folder.parent.parent / "logs" / "train.log"
        data = log.read_bytes()[slice(*itertools.islice([*starts, None], 2))]
        written = [
            item["message"] for _, item, _ in loglines.decode(data, "", True) if item is not None
        ]
        shown = tuple(text for number, text in lines if number == attempt.number)
        return LogSeen(attempt.number, tuple(written), shown, attempt.stored_before is not None)


def _log_offset(folder: Path) -> int:
    return int(json.loads((folder / "entry.json").read_text())["log_offset"])


def _first_host(follower: Follower) -> str:
    return next(s.host for s in follower.reads if s.attempt == 1 and s.host is not None)
