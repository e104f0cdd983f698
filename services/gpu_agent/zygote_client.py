"""The agent's side of the zygote: starts it, hands it start commands, starts it anew when it dies, within a limit."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from shared.log import logger
from shared.settings import without_secrets

COMMAND = (sys.executable, "-P", "-m", "services.gpu_agent.zygote")
RESTARTS = 5
RESTART_WINDOW = 600.0
READY_SECONDS = 180.0
_IMPORT_PREFIXES = ("HF_", "TRANSFORMERS_", "HUGGINGFACE_", "TOKENIZERS_", "LD_", "PYTHON")
_ENV = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
}


class ZygoteGone(RuntimeError):
    """No warm process can take the command; start cold."""


class ZygoteClient:
    """Owned by the agent; `run` keeps a zygote ready until it is cancelled."""

    def __init__(self, log: Path, command: Sequence[str] = COMMAND) -> None:
        """Do no I/O."""
        self._log = log
        self._command = tuple(command)
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._key = ""
        self._ready = asyncio.Event()
        self._starts: deque[float] = deque()

    @property
    def is_ready(self) -> bool:
        """Tell whether a start would be warm, were it asked for now."""
        return self._ready.is_set() and self._key == import_key(os.environ)

    async def wait_ready(self, timeout: float) -> bool:
        """Wait for the preload; tell whether it is done."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._ready.wait()
        return self.is_ready

    def send(self, attempt_dir: Path, descriptors: Sequence[int]) -> None:
        """Ask for a start: a descriptor for the answer, then perhaps one with secrets. Raises ZygoteGone."""
        if not self.is_ready or self._socket is None:
            if self._ready.is_set():
                logger("zygote").info("environment_changed")
                self.discard()
            raise ZygoteGone
        message = json.dumps({"attempt_dir": str(attempt_dir)}).encode()
        try:
            socket.send_fds(self._socket, [message], list(descriptors))
        except OSError as error:
            self.discard()
            raise ZygoteGone from error

    def discard(self) -> None:
        """End this zygote; runs that it forked go on, and `run` starts another."""
        self._ready.clear()
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    async def run(self) -> None:
        """Keep one ready, for ever; after five starts in ten minutes it waits."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                now = loop.time()
                while self._starts and now - self._starts[0] > RESTART_WINDOW:
                    self._starts.popleft()
                if len(self._starts) >= RESTARTS:
                    logger("zygote").error("gives_up_for_now", log=str(self._log))
                    await asyncio.sleep(RESTART_WINDOW)
                    continue
                if self._starts:
                    await asyncio.sleep(2 ** len(self._starts) / 4)
                self._starts.append(loop.time())
                await self._live()
        finally:
            self._end()

    async def _live(self) -> None:
        """Start one and stay until it is gone."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        key = import_key(os.environ)
        try:
            self._process = self._spawn(theirs)
        finally:
            theirs.close()
        self._socket = ours
        try:
            async with asyncio.timeout(READY_SECONDS):
                hello = await loop.sock_recv(ours, 4096)
            if hello:
                self._key = key
                self._ready.set()
                seconds = json.loads(hello)["seconds"]
                logger("zygote").info("ready", seconds=round(seconds, 2), pid=self._process.pid)
                await loop.sock_recv(ours, 4096)
        except (TimeoutError, OSError, ValueError) as error:
            logger("zygote").warning("start_failed", error=repr(error))
        code = await asyncio.to_thread(self._reap)
        logger("zygote").warning("ended", code=code, log=str(self._log))
        self._end()

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*self._command, "--socket", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                env={**without_secrets(os.environ), **_ENV},
                start_new_session=True,
            )

    def _reap(self) -> int | None:
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait(timeout=10)

    def _end(self) -> None:
        self._ready.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait(timeout=10)
            self._process = None


def import_key(env: Mapping[str, str]) -> str:
    """Return what must be equal for a warm start: the environment that imports read, and the installed packages."""
    digest = hashlib.sha256()
    for name in sorted(env):
        if name.startswith(_IMPORT_PREFIXES) and name not in _ENV:
            digest.update(f"{name}={env[name]}\0".encode())
    for folder in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(folder), key=lambda e: e.name):
                if entry.name.endswith(".dist-info"):
                    digest.update(f"{entry.name}:{entry.stat().st_mtime_ns}\0".encode())
    return digest.hexdigest()
