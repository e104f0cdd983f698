"""One supervised service: started, watched, started again, stopped in good order."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from shared.log import logger
from trainyard.stack.restart import CAP_SECONDS, next_delay

PR_SET_PDEATHSIG = 1
EX_CONFIG = 78
"""A service leaves with this when its settings forbid it to run: starting it again would change nothing."""
LOG_LIMIT_BYTES = 32 * 1024 * 1024
_libc = ctypes.CDLL(None, use_errno=True)
log = logger("up")


class StartFailed(RuntimeError):
    """A service did not become ready in time; the message names its log."""


@dataclass
class Service:
    """What to run and how to tell that it is ready."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log_path: Path
    ready: Callable[[], Awaitable[bool]]
    ready_seconds: float = 60.0
    stop_seconds: float = 15.0
    restart_cap: float = CAP_SECONDS
    """Longest wait in seconds before it is started again."""
    process: asyncio.subprocess.Process | None = field(default=None, init=False)
    stopping: bool = field(default=False, init=False)
    _watch: asyncio.Task[None] | None = field(default=None, init=False)
    _refused: bool = field(default=False, init=False)

    async def start(self) -> None:
        """Start it and wait until it is ready. Raises StartFailed."""
        await self._spawn()
        self._watch = asyncio.create_task(self._keep_alive(), name=f"watch-{self.name}")
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Wait for readiness. Raises StartFailed after `ready_seconds`, or when its settings forbid it to run."""
        deadline = time.monotonic() + self.ready_seconds
        while time.monotonic() < deadline:
            if await self.ready():
                return
            if self._refused:
                raise StartFailed(f"{self.name} refuses to start. {_last_line(self.log_path)}")
            await asyncio.sleep(0.05)
        raise StartFailed(
            f"{self.name} is not ready after {self.ready_seconds:g} s; its log: {self.log_path}"
        )

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after `stop_seconds`."""
        self.stopping = True
        if self._watch is not None:
            self._watch.cancel()
        await self.end_process()

    async def end_process(self) -> None:
        """End the process that runs now; unless the service is being stopped, it is started again at once."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), self.stop_seconds)
        except TimeoutError:
            log.warning("killed", name=self.name, after_seconds=self.stop_seconds)
            process.kill()
            await process.wait()

    async def _spawn(self) -> None:
        with _open_log(self.log_path) as stream:
            self.process = await asyncio.create_subprocess_exec(
                *self.argv,
                env=dict(self.env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                preexec_fn=_end_with_parent,
                start_new_session=True,
            )
        log.info("started", name=self.name, pid=self.process.pid)

    async def _keep_alive(self) -> None:
        failures = 0
        while not self.stopping and self.process is not None:
            started = time.monotonic()
            code = await self.process.wait()
            if self.stopping:
                return
            self._refused = code == EX_CONFIG
            delay, failures = next_delay(failures, time.monotonic() - started, self.restart_cap)
            log.warning("died", name=self.name, exit_code=code, restart_in_seconds=delay)
            await asyncio.sleep(delay)
            if not self.stopping:
                await self._spawn_again()

    async def _spawn_again(self) -> None:
        """Start it; what the system refuses for now (no memory, no descriptors) is asked for again."""
        while not self.stopping:
            try:
                await self._spawn()
            except OSError as error:
                log.error("not_started", name=self.name, error=str(error))
                await asyncio.sleep(CAP_SECONDS)
            else:
                return


def python(module: str, *arguments: str) -> list[str]:
    """Return the argv of one of our modules; the current folder stays off its import path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def _end_with_parent() -> None:
    """Ask for SIGTERM when `up` dies by SIGKILL, so that no service is left without a supervisor."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def _last_line(path: Path) -> str:
    """Return what the service said last: the sentence for the person who started it."""
    lines = path.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"Its log: {path}"


def _open_log(path: Path) -> IO[bytes]:
    """Open the log for appending; where there is no room for one, a service runs without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _rotate(path)
        return path.open("ab")
    except OSError as error:
        log.error("log_not_opened", path=str(path), error=str(error))
        return Path(os.devnull).open("ab")


def _rotate(path: Path) -> None:
    """Keep one older file, so that logs of services are bounded."""
    try:
        if path.stat().st_size > LOG_LIMIT_BYTES:
            path.replace(path.with_suffix(path.suffix + ".1"))
    except FileNotFoundError:
        return
