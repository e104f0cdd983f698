"""The agent: adopts what runs, follows the scheduler, relays what trainers write. Everything below it outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from services.gpu_agent import secrets_client
from services.gpu_agent.commands import Commands
from services.gpu_agent.confirmations import ACK_SECONDS, Confirmations
from services.gpu_agent.control import ControlFollower
from services.gpu_agent.heartbeat import HeartbeatLoop
from services.gpu_agent.hooks.checks import CHECKS, Check
from services.gpu_agent.identity import AgentRefused
from services.gpu_agent.inventory import HostFacts, Inventory, versions
from services.gpu_agent.launcher import TRAINER_COMMAND, Launcher
from services.gpu_agent.layout import HostFiles
from services.gpu_agent.relay import LANES, Relay
from services.gpu_agent.rules_service import RulesService
from services.gpu_agent.runner import Runner
from services.gpu_agent.sampler import EVERY_SECONDS, Sampler
from services.gpu_agent.settings import AgentSettings
from services.gpu_agent.starting import Rewards, Starter
from services.gpu_agent.zygote_client import COMMAND, ZygoteClient
from shared.bus.jetstream import Bus
from shared.bus.port import BusConfig, BusError, PermissionDenied
from shared.clock import Clock, SystemClock
from shared.log import logger
from shared.runs import write_atomic_json
from shared.settings import PROJECT_ROOT

CONNECT_SECONDS = 10.0
FLUSH_SECONDS = 3.0
STOP_JOBS_FLUSH_SECONDS = 15.0
_IDENTITY_TICK = 1.0
_FLUSH_TICK = 0.02


@dataclass(frozen=True)
class Options:
    """What tests set otherwise: the programs, the checks, and how often the api is asked."""

    trainer_command: Sequence[str] = TRAINER_COMMAND
    zygote_command: Sequence[str] = COMMAND
    checks: Sequence[Check] = CHECKS
    ack_seconds: float = ACK_SECONDS
    sample_seconds: float = EVERY_SECONDS


def _rules(settings: AgentSettings) -> RulesService:
    """Return this host's reward service; beside what jobs may read it may read checkpoints, which lie in folders of ours."""
    files, roots = settings.files, settings.roots
    own = None if roots is None else (*roots, files.work_dir, settings.checkpoint_dir)
    return RulesService(files.home / "rules", own)


class Agent:
    """One for a host; `run` returns when `stop` is set."""

    def __init__(
        self,
        settings: AgentSettings,
        host: str,
        options: Options | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Wire the parts; the home's lock must be held. Does little I/O."""
        options = options or Options()
        self.clock = clock or SystemClock()
        self.host = host
        self.files: HostFiles = settings.files
        self.bus: Bus | None = None
        self._restore: str | None = None
        """The last restore that this host has answered to, or is answering to."""
        version, packages = versions()
        facts = HostFacts(settings.label, settings.slots, settings.shared_paths, version, packages)
        inventory = Inventory(self.files, facts)
        log = self.files.zygote_log
        self.zygote = ZygoteClient(log, options.zygote_command) if settings.agent_zygote else None
        self.rules = _rules(settings) if settings.agent_rules else None
        self.relay = Relay(host, self.clock)
        self.confirmations = Confirmations(self.relay, self.clock, options.ack_seconds)
        starter = Starter(
            self.files,
            inventory,
            Launcher(self.files, self.zygote, options.trainer_command),
            self._fetch_secrets,
            roots=settings.roots,
            project_root=PROJECT_ROOT,
            checks=options.checks,
        )
        starter.rewards = Rewards(
            None if self.rules is None else self.rules.run_file,
            lambda: settings.central_reward_url,
            settings.reward_token or settings.api_token,
        )
        self.runner = Runner(self.files, self.relay, starter, self.clock)
        self.relay.on_facts_lost = self.runner.send_all_again
        self.control = ControlFollower(host, self._commanded)
        self.heartbeat = HeartbeatLoop(
            host=host,
            instance=uuid.uuid4().hex,
            files=self.files,
            inventory=inventory,
            clock=self.clock,
            every=settings.agent_heartbeat_seconds,
            reports=self.runner.reports,
            changed=self._changed,
            restored=self._restored,
        )
        self.runner.may_start = self.heartbeat.may_start
        self._commands = Commands(host, self.files, settings.roots, PROJECT_ROOT)
        self._sampler = Sampler(inventory, lambda: self.runner.alive, options.sample_seconds)

    def _commanded(self) -> None:
        """Follow what is wanted, and ask the scheduler where it must speak first.

        New work may mean that a drained host is no longer drained, and some may start only once a lease names it.
        """
        drained = self.heartbeat.standing.drained
        wanted = [e for e in self.control.entries.values() if e.desired == "run"]
        if drained or not all(map(self.heartbeat.may_start, wanted)):
            self.heartbeat.beat_soon()
        if not drained:
            self._changed()

    def _changed(self) -> None:
        """Let the runner see what the scheduler said last."""
        standing = self.heartbeat.standing
        self.runner.entries = self.control.entries
        self.runner.complete = bool(
            standing.answered
            and standing.refused_since is None
            and self.control.epoch
            and self.control.epoch == standing.ctl_epoch
        )
        self.runner.drained = not self.heartbeat.accepts
        self.runner.wake()

    def _restored(self, restore: str) -> None:
        """Have everything on this disk confirmed again, once for each restore of the stack's databases."""
        if self._restore is None:
            with contextlib.suppress(OSError):
                self._restore = self.files.restored.read_text().strip()
        if self._restore == restore:
            return
        self._restore = restore

        def settled() -> None:
            with contextlib.suppress(OSError):  # asked again by the next agent then
                self.files.restored.write_text(restore)

        self.confirmations.doubt([run.spool for run in self.runner.runs.values()], settled)

    async def _fetch_secrets(self, job: str, attempt: int) -> dict[str, str]:
        return await secrets_client.fetch(lambda: self.bus, self.host, job, attempt)

    async def run(self, config: BusConfig, stop: asyncio.Event, *, stop_jobs: bool = False) -> None:
        """Work until `stop` is set. Raises AgentRefused when another agent has this host's id."""
        for folder in (self.files.work_dir, self.files.home / "locks", self.files.home / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        self.runner.adopt()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.relay.run_reader()),
                group.create_task(self.runner.run()),
                group.create_task(self.runner.watch_stalls()),
                group.create_task(self._sampler.run()),
                group.create_task(self._stay_connected(config)),
            ]
            if self.rules is not None:
                tasks.append(group.create_task(self.rules.run()))
            if self.zygote is not None:
                tasks.append(group.create_task(self.zygote.run()))
            write_atomic_json(
                self.files.ready, {"host_id": self.host, "pid": os.getpid(), "started": time.time()}
            )
            try:
                await self._until(stop)
            finally:
                self.files.ready.unlink(missing_ok=True)
                await self._leave(stop_jobs=stop_jobs or self.files.stop_jobs.exists())
                for task in tasks:
                    task.cancel()

    async def _until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if self.heartbeat.is_usurped:
                raise AgentRefused(
                    f"Another agent runs with the id of this host ({self.host}). Was {self.files.home} copied to another machine? "
                    f"Remove {self.files.host} on one of them and join again."
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_IDENTITY_TICK):
                    await stop.wait()

    async def _leave(self, *, stop_jobs: bool) -> None:
        if stop_jobs:
            await self.runner.stop_all()
        await self._flush(STOP_JOBS_FLUSH_SECONDS if stop_jobs else FLUSH_SECONDS)
        if self.rules is not None and not self.runner.alive:
            await self.rules.stop()
        await self.runner.close()
        self.relay.save()

    async def _flush(self, seconds: float) -> None:
        """Publish what is in the files now, if the bus takes it in time; what stays comes with the next start."""
        if self.bus is None or not self.bus.is_connected:
            return
        deadline = self.clock.boot() + seconds
        # By the clock: with much to read one round takes far longer than the pause between two.
        while self.clock.boot() < deadline:
            self.relay.read_once()
            self.relay.wake()
            if not self.relay.has_queue:
                return
            await asyncio.sleep(_FLUSH_TICK)

    # the bus

    async def _stay_connected(self, config: BusConfig) -> None:
        bus = await self._connect(config)
        self.bus = bus
        bus.on_reconnect(self._reconnected)
        served = None
        try:
            async with asyncio.TaskGroup() as group:
                for lane in LANES:
                    group.create_task(self.relay.run_lane(lane, bus))
                group.create_task(self.relay.run_epochs(bus))
                group.create_task(self.confirmations.run(bus))
                group.create_task(self.control.run(bus))
                group.create_task(self.heartbeat.run(bus))
                served = await self._commands.serve(bus)
        finally:
            self.bus = None
            if served is not None:
                await served.close()
            await bus.close()

    async def _connect(self, config: BusConfig) -> Bus:
        """Try for ever: a host may be started before its broker, or before its key is let in."""
        while True:
            try:
                return await Bus.connect(config, timeout=CONNECT_SECONDS)
            except (BusError, PermissionDenied) as error:
                logger("agent").warning("not_connected", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(1)

    async def _reconnected(self) -> None:
        self.relay.check_epochs_soon()
        self.relay.wake()
        self.control.read_soon()
