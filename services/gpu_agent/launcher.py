"""Starts attempts: warm through the zygote, else cold; either way a shim of its own keeps the run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.gpu_agent import shim
from services.gpu_agent.layout import AttemptFiles, HostFiles
from services.gpu_agent.processes import lock_files
from services.gpu_agent.zygote_client import ZygoteClient, ZygoteGone
from shared.events.calls import ControlEntry
from shared.log import logger
from shared.runs import RunSpec, write_atomic_json
from shared.settings import SECRET_VARIABLES, without_secrets

TRAINER_COMMAND = (sys.executable, "-P", "-m", "services.gpu_agent.trainers")
SEVERAL_COMMAND = (sys.executable, "-P", "-m", "services.gpu_agent.trainers.torchrun")
"""For a run on several GPUs: the ranks are its children."""
RANK_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""What a launcher tells a rank. An agent that was itself started with them must not hand them on."""
START_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Started:
    """A trainer process exists."""

    trainer: int
    shim: int
    warm: bool


@dataclass(frozen=True, slots=True)
class NotStarted:
    """`locked`: something still runs with a lock it needs (`detail` names it); `used`; `failed`."""

    why: str
    detail: str = ""


class Launcher:
    """One for an agent."""

    def __init__(
        self,
        host: HostFiles,
        zygote: ZygoteClient | None,
        trainer_command: Sequence[str] = TRAINER_COMMAND,
    ) -> None:
        """`trainer_command` gets the attempt's folder as its last argument, and `--secrets-fd N` where there are any."""
        self._host = host
        self._zygote = zygote
        self._command = tuple(trainer_command)
        self._children: set[int] = set()

    def write_launch(self, files: AttemptFiles, spec: RunSpec, entry: ControlEntry) -> None:
        """Write `launch.json`, with the lease that the start is made under. Raises OSError."""
        job = self._host.job(spec.job)
        write_atomic_json(
            files.launch,
            {
                "holder": f"{spec.job} {spec.attempt}\n",
                "locks": [str(job.lock), *(str(self._host.gpu_lock(g.uuid)) for g in spec.gpus)],
                "rank_locks": [str(path) for path in lock_files(job.lock)[1:]],
                "log": str(job.log),
                "argv": [*self._command_for(spec), str(files.root)],
                "warm": starts_warm(spec),
                "env": trainer_env(spec),
                "drop_env": [*SECRET_VARIABLES, *RANK_VARIABLES],
                "policy": entry.disconnect_policy,
                "stop_after": entry.stop_after_seconds,
                "grace": min(entry.grace_seconds, entry.kill_grace_seconds),
                "lease": str(self._host.lease),
                "leased": shim.read_json(str(self._host.lease)),
            },
        )

    async def start(
        self, files: AttemptFiles, secrets: Mapping[str, str] | None
    ) -> Started | NotStarted:
        """Start what `launch.json` says; warm if a zygote is ready."""
        launch = shim.read_launch(str(files.root))
        if self._zygote is not None and launch.get("warm", True):
            answer = await self._try_warm(files, secrets)
            if answer is not None:
                return answer
        return await self._cold(files, secrets)

    def _command_for(self, spec: RunSpec) -> Sequence[str]:
        """A command given from outside is told how many GPUs it has, and starts its own ranks."""
        several = _has_ranks(spec) and self._command == TRAINER_COMMAND
        return SEVERAL_COMMAND if several else self._command

    async def _try_warm(
        self, files: AttemptFiles, secrets: Mapping[str, str] | None
    ) -> Started | NotStarted | None:
        assert self._zygote is not None
        with _descriptors(secrets) as (read_end, write_end, secret):
            try:
                self._zygote.send(files.root, [write_end, *([] if secret is None else [secret])])
            except ZygoteGone:
                return None
            finally:
                os.close(write_end)
            answer = await asyncio.to_thread(_answer, read_end, START_SECONDS)
        if answer is None:
            logger("launcher").warning("zygote_silent", attempt_dir=str(files.root))
            self._zygote.discard()
            return NotStarted("failed", "no answer") if files.pid.exists() else None
        return _outcome(answer)

    async def _cold(
        self, files: AttemptFiles, secrets: Mapping[str, str] | None
    ) -> Started | NotStarted:
        with _descriptors(secrets) as (read_end, write_end, secret):
            passed = [write_end, *([] if secret is None else [secret])]
            self._spawn(files, passed)
            os.close(write_end)
            answer = await asyncio.to_thread(_answer, read_end, START_SECONDS)
        self.reap()
        return NotStarted("failed", "no answer") if answer is None else _outcome(answer)

    def _spawn(self, files: AttemptFiles, passed: list[int]) -> None:
        log = self._host.home / "logs" / "shim.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        for descriptor in passed:
            os.set_inheritable(descriptor, True)
        arguments = ["start", str(files.root), *map(str, passed)]
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", shim.__file__, *arguments],
            without_secrets(os.environ),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        self._children.add(pid)

    def reap(self) -> None:
        """Collect shims that have ended; call it now and then."""
        for pid in list(self._children):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            self._children.discard(pid)


def starts_warm(spec: RunSpec) -> bool:
    """Tell whether a fork of the zygote can be this run: one process, and not the launcher of several."""
    return not _has_ranks(spec)


def _has_ranks(spec: RunSpec) -> bool:
    """verl is one process to us: it starts its own on the GPUs."""
    return len(spec.gpus) > 1 and spec.config.get("engine") != "verl"


def trainer_env(spec: RunSpec) -> dict[str, str]:
    """Return what a trainer's environment has beside the agent's own; no secret is in it. Ranks share the threads."""
    threads = str(max(1, spec.threads // max(1, len(spec.gpus))))  # verl: of each of its own, too
    visible = ",".join(g.uuid for g in spec.gpus) if spec.device == "cuda" else ""
    return {
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "CUDA_VISIBLE_DEVICES": visible,
        "TRAINYARD_RUN": f"{spec.job}.{spec.attempt}",
    }


class _descriptors:  # noqa: N801 - reads as a verb at its uses
    """A pipe for the answer, and a memory file with the secrets that never has a name on disk."""

    def __init__(self, secrets: Mapping[str, str] | None) -> None:
        self._secrets = secrets
        self._open: list[int] = []

    def __enter__(self) -> tuple[int, int, int | None]:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        self._open = [read_end, write_end]
        secret = None
        if self._secrets:
            secret = os.memfd_create("secrets", os.MFD_CLOEXEC)
            os.write(secret, json.dumps(dict(self._secrets)).encode())
            os.lseek(secret, 0, os.SEEK_SET)
            self._open.append(secret)
        return read_end, write_end, secret

    def __exit__(self, *_: object) -> None:
        for descriptor in (
            self._open[0],
            *self._open[2:],
        ):  # the write end was closed by whoever passed it on
            os.close(descriptor)


def _answer(read_end: int, timeout: float) -> dict[str, Any] | None:
    ready, _, _ = select.select([read_end], [], [], timeout)
    data = os.read(read_end, 64 * 1024) if ready else b""
    try:
        document: dict[str, Any] = json.loads(data)
    except ValueError:
        return None
    return document


def _outcome(answer: Mapping[str, Any]) -> Started | NotStarted:
    if answer.get("ok"):
        return Started(int(answer["trainer"]), int(answer["shim"]), bool(answer["warm"]))
    return NotStarted(str(answer.get("error", "failed")), Path(str(answer.get("path", ""))).name)
