"""The reward service of this host: rewards by rules and by local models need no network. It outlives the agent, like trainers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import httpx2

from shared.log import logger
from shared.settings import without_secrets

LOG = logger("agent.rules")
CHECK_SECONDS: Final = 10.0
START_SECONDS: Final = 60.0
ANSWER_SECONDS: Final = 3.0
STOP_SECONDS: Final = 10.0
IDLE_EXIT_SECONDS: Final = 900.0
"""Without an agent that looks after it and without a trainer that asks it, it ends by itself."""
_PAUSES: Final = (1.0, 2.0, 5.0, 15.0, 60.0)


class RulesService:
    """Adopts the one that runs, else starts one; looks after it while `run` runs. `home`: its own folder."""

    def __init__(self, home: Path, roots: tuple[Path, ...] | None = None) -> None:
        """`roots`: folders that local reward models may lie in; None: any."""
        self._home = home
        self._roots = roots
        self.run_file = home / "run" / "reward.json"
        """Where it writes its address."""
        self._process: asyncio.subprocess.Process | None = None
        self._ending = False
        self.url: str | None = None
        """Where it answers; None while it does not."""

    async def run(self) -> None:
        """Keep it running until `stop`."""
        failures = 0
        while not self._ending:
            if await self._answers():
                failures = 0
                await asyncio.sleep(CHECK_SECONDS)
                continue
            self.url = None
            if failures:
                await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES)) - 1])
            if not self._ending:
                failures = 0 if await self._start() else failures + 1

    async def stop(self) -> None:
        """End it: no trainer of this host needs it any more."""
        self._ending = True  # first: `run` would take its end for a death and start another
        pid = self._pid()
        self.url = None
        started = self._process
        if pid is not None and (started is None or started.pid != pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if started is not None and started.returncode is None:
            await _end(started)  # also one that is still starting and has not written its file

    async def _start(self) -> bool:
        """Start one and wait until it answers; False where it does not."""
        self.run_file.parent.mkdir(parents=True, exist_ok=True)
        self.run_file.unlink(missing_ok=True)
        env = without_secrets(os.environ) | {
            "TRAINYARD_HOME": str(self._home),
            "TRAINYARD_REWARD_RULES_ONLY": "true",
            "TRAINYARD_REWARD_HOST": "127.0.0.1",
            "TRAINYARD_REWARD_PORT": "0",
            "TRAINYARD_REWARD_IDLE_EXIT_SECONDS": str(IDLE_EXIT_SECONDS),
        }
        if self._roots is not None:
            env["TRAINYARD_DATA_ROOTS"] = ":".join(map(str, self._roots))
        log = self._home / "reward.log"
        with log.open("wb") as stream:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "services.reward",
                env=env, stdin=asyncio.subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip
        if self._ending:
            await _end(self._process)
            return False
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.returncode is None:
            if await self._answers():
                LOG.info("rules_service_started", url=self.url, pid=self._process.pid)
                return True
            await asyncio.sleep(0.2)
        LOG.warning("rules_service_did_not_start", log=str(log), status=self._process.returncode)
        if self._process.returncode is None and not self._ending:
            self._process.kill()
        return False

    async def _answers(self) -> bool:
        told = self._told()
        if told is None:
            return False
        try:
            async with httpx2.AsyncClient(timeout=ANSWER_SECONDS, trust_env=False) as client:
                alive = (await client.get(f"{told['url']}/livez")).status_code == 200
        except httpx2.HTTPError:
            return False
        self.url = str(told["url"]) if alive else None
        return alive

    def _told(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.run_file.read_text())
        except (OSError, ValueError):
            return None
        return found

    def _pid(self) -> int | None:
        """Return its pid, where the process of that number is it: numbers are used again."""
        told = self._told()
        pid = None if told is None else int(told["pid"])
        if pid is None:
            return None
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return None
        ours = f"TRAINYARD_HOME={self._home}".encode() in environment.split(b"\0")
        return pid if b"services.reward" in command and ours else None


async def _end(process: asyncio.subprocess.Process) -> None:
    """Send SIGTERM, and SIGKILL after STOP_SECONDS."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
