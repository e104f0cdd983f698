"""From a control entry to a running trainer: folder, checks, spec, secrets, start; each way out leaves a fact."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from services.gpu_agent.core.exits import Ending
from services.gpu_agent.core.reconcile import Phase
from services.gpu_agent.facts import RunAccepted, RunCheckpoint, RunRefused
from services.gpu_agent.hooks.checks import CHECKS, Check, run_checks
from services.gpu_agent.hooks.context import HookContext, Refusal
from services.gpu_agent.inventory import Inventory
from services.gpu_agent.launcher import Launcher, NotStarted
from services.gpu_agent.layout import HostFiles
from services.gpu_agent.run import Begun, Run
from services.gpu_agent.secrets_client import SecretsUnavailable
from services.gpu_agent.stocktaking import differences
from shared.disk.levels import Shortage
from shared.disk.reserve import set_aside
from shared.events.calls import ControlEntry
from shared.jobs.reasons import REASONS, Reason
from shared.log import logger
from shared.preflight.batch import ROLLOUT
from shared.runs import MOST_HALVINGS, REWARD_TOKEN, GpuRef, RunSpec, write_atomic_json

Fetch = Callable[[str, int], Awaitable[Mapping[str, str]]]
LAST_WORDS_BYTES = 32 * 1024
"""Set aside for each file that tells how a run ended, and for the order to stop it."""
_CPU_THREADS_PER_GPU = 8


@dataclass(frozen=True, slots=True)
class Rewards:
    """Where trainers of this host find rewards."""

    rules_file: Path | None = None
    """Where the reward service of this host writes its address."""
    central: Callable[[], str | None] = lambda: None
    """Asked at each start: the address of the central service, which may have moved."""
    token: str | None = None
    """What the central service asks for."""


class Starter:
    """Everything a start needs; made once."""

    def __init__(
        self,
        host: HostFiles,
        inventory: Inventory,
        launcher: Launcher,
        fetch_secrets: Fetch,
        *,
        roots: tuple[Path, ...] | None,
        project_root: Path,
        checks: Sequence[Check] = CHECKS,
    ) -> None:
        """Do no I/O."""
        self._host = host
        self._inventory = inventory
        self._launcher = launcher
        self._fetch_secrets = fetch_secrets
        self._roots = roots
        self._project_root = project_root
        self.rewards = Rewards()
        """Set by whoever knows where they are."""
        self._checks = checks

    async def start(self, run: Run, entry: ControlEntry, still_wanted: Callable[[], bool]) -> None:
        """Bring the attempt to life, or close it with the reason.

        Raises OSError when not even that can be written, and Begun when an earlier agent's shim has begun it.
        """
        context = self._context(entry)
        refusal = await asyncio.to_thread(run_checks, context, self._checks)
        if refusal is not None:
            self._turn_down(run, refusal)
            return
        spec = self._spec(context)
        write_atomic_json(run.files.spec, spec)
        for path in run.files.last_words:
            set_aside(path, LAST_WORDS_BYTES)
        _append_notes(run.job_files.log, context.notes)
        if not run.spool.facts.has(RunAccepted):
            run.spool.facts.append(RunAccepted(seq=0, t=time.time(), gpus=entry.gpus))
        for fact in await asyncio.to_thread(_corrections, context):
            run.spool.facts.append(fact)
        secrets = self._with_token(entry, await self._secrets(run, entry))
        if run.phase is Phase.ENDED:
            return
        # the lease first: the shim counts from it, and it is no newer than the word that this is still wanted
        self._launcher.write_launch(run.files, spec, entry)
        if not still_wanted():
            return
        outcome = await self._launcher.start(run.files, secrets)
        if isinstance(outcome, NotStarted) and not run.is_alive():
            with contextlib.suppress(Begun):
                self._not_started(run, outcome)
                return
        run.phase = Phase.ALIVE

    def reap(self) -> None:
        """Collect shims that have ended."""
        self._launcher.reap()

    def _context(self, entry: ControlEntry) -> HookContext:
        gpus = {g.uuid: g for g in self._inventory.gpus()}
        mine = [gpus[u].memory_mib for u in entry.gpu_uuids if u in gpus]
        total = psutil.virtual_memory().total >> 20
        is_cuda = self._inventory.device == "cuda"
        return HookContext(
            entry=entry,
            host=self._host,
            roots=self._roots,
            project_root=self._project_root,
            device=self._inventory.device,
            memory_mib=min(mine) if is_cuda and mine else total,
        )

    def _spec(self, context: HookContext) -> RunSpec:
        entry = context.entry
        is_cuda = context.device == "cuda"
        uuids = entry.gpu_uuids or tuple(f"slot-{i}" for i in entry.gpus)
        count = max(1, len(uuids))
        cores = os.cpu_count() or 1
        return RunSpec(
            job=entry.job,
            attempt=entry.attempt,
            algorithm=str(entry.config.get("algorithm", "sft")),
            config=entry.config,
            model_path=context.model_path,
            train_data_path=context.train_data_path,
            eval_data_path=context.eval_data_path,
            checkpoint_dir=context.checkpoint_dir,
            work_dir=context.job_files.root,
            attempt_dir=context.attempt_files.root,
            resume_from=context.resume_from,
            model_paths=context.model_paths,
            rules_file=self.rewards.rules_file,
            reward_url=self.rewards.central(),
            oom_halvings=min(entry.oom_halvings, MOST_HALVINGS),
            device="cuda" if is_cuda else "cpu",
            gpus=tuple(
                GpuRef(index=i, uuid=u)
                for i, u in zip(entry.gpus or range(count), uuids, strict=False)
            ),
            threads=min(cores, count * _CPU_THREADS_PER_GPU) if is_cuda else min(cores, count),
        )

    async def _secrets(self, run: Run, entry: ControlEntry) -> Mapping[str, str] | None:
        if not entry.secret_names:
            return None
        try:
            values = await self._fetch_secrets(entry.job, entry.attempt)
            missing = sorted(set(entry.secret_names) - values.keys())
            if missing:
                # The api's database was restored from a backup that is older than they are, perhaps.
                raise SecretsUnavailable(f"the api does not hold {', '.join(missing)}")
            return values
        except SecretsUnavailable as error:
            text = REASONS[Reason.SECRET_UNAVAILABLE]
            self._turn_down(
                run,
                Refusal(
                    "host",
                    Reason.SECRET_UNAVAILABLE,
                    f"{text.en} {error}",
                    f"{text.zh}（{error}）",
                ),
            )
            return None

    def _with_token(
        self, entry: ControlEntry, secrets: Mapping[str, str] | None
    ) -> Mapping[str, str] | None:
        """Add the token of the central reward service for algorithms that ask for rewards."""
        token = self.rewards.token
        if token is None or entry.config.get("algorithm") not in ROLLOUT:
            return secrets
        return {**(secrets or {}), REWARD_TOKEN: token}

    def _turn_down(self, run: Run, refusal: Refusal) -> None:
        logger("runner").info(
            "not_started",
            job=run.job,
            attempt=run.attempt,
            reason=refusal.reason,
            fault=refusal.fault,
        )
        _append_notes(run.job_files.log, [("ERROR", refusal.message_en)])
        if refusal.fault == "job":
            run.end(
                Ending(
                    outcome="failed",
                    reason=refusal.reason,
                    message_en=refusal.message_en,
                    message_zh=refusal.message_zh,
                )
            )
            return
        refuse(
            run, refusal.reason, refusal.message_en, refusal.message_zh, shortage=refusal.shortage
        )

    def _not_started(self, run: Run, outcome: NotStarted) -> None:
        if outcome.why == "locked":
            refuse(
                run,
                Reason.HOST_REFUSED,
                f"Another run on this host still holds {outcome.detail}.",
                f"该主机上的另一个任务仍占用 {outcome.detail}。",
            )
            return
        text = REASONS[Reason.START_FAILED]
        detail = f" ({outcome.why} {outcome.detail})".replace(" )", ")")
        run.end(
            Ending(
                outcome="failed",
                reason=Reason.START_FAILED,
                message_en=text.en + detail,
                message_zh=text.zh + detail,
            )
        )


def refuse(run: Run, reason: Reason, en: str, zh: str, *, shortage: Shortage | None = None) -> None:
    """Write `refused`, the last fact of an attempt that this host does not take. Raises Begun where it has begun."""
    run.bar()
    run.spool.facts.append(
        RunRefused(
            seq=0, t=time.time(), reason=reason, message_en=en, message_zh=zh, shortage=shortage
        )
    )
    run.phase = Phase.ENDED


def _corrections(context: HookContext) -> list[RunCheckpoint]:
    """Return what the control plane does not know of the checkpoints that are here; nothing before the second attempt."""
    entry = context.entry
    if not entry.resume:
        return []
    found = differences(context.checkpoint_dir, entry.checkpoints, time.time())
    return [fact for fact in found if fact.step not in context.skipped]


def _append_notes(log: Path, notes: Sequence[tuple[str, str]]) -> None:
    """Write the agent's own lines into the attempt's log, before the trainer writes its first."""
    text = "".join(f"[{level}] {' '.join(line.split())}\n" for level, line in notes)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(text)
    except OSError as error:
        logger("runner").warning("log_not_written", log=str(log), error=str(error))
