"""Samples of GPU, memory and CPU of every run, every five seconds, into a file of the agent's own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import psutil

from services.gpu_agent.facts import append_line
from services.gpu_agent.inventory import Inventory
from services.gpu_agent.processes import RunProcesses
from services.gpu_agent.run import Run
from shared.jobs.resources import GpuInfo
from shared.log import logger

EVERY_SECONDS = 5.0


class Sampler:
    """One for an agent."""

    def __init__(
        self, inventory: Inventory, alive: Callable[[], list[Run]], every: float = EVERY_SECONDS
    ) -> None:
        """Do no I/O."""
        self._inventory = inventory
        self._alive = alive
        self._every = every
        self._seen: dict[int, psutil.Process] = {}

    async def run(self) -> None:
        """Sample for ever."""
        while True:
            await asyncio.sleep(self._every)
            runs = self._alive()
            if not runs:
                self._seen.clear()
                continue
            gpus = {g.uuid: g for g in await asyncio.to_thread(self._inventory.gpus)}
            for run in runs:
                try:
                    record = await asyncio.to_thread(self._sample, run, gpus)
                    if record is not None and not run.spool.facts.is_closed:
                        append_line(run.files.system, record)
                except OSError as error:
                    logger("sampler").warning("not_sampled", job=run.job, error=str(error))

    def _sample(self, run: Run, gpus: dict[str, GpuInfo]) -> dict[str, Any] | None:
        processes = RunProcesses.read(run.files.pid)
        if processes is None or processes.trainer is None or not processes.trainer.is_alive():
            return None
        cpu, rss = self._usage(processes.trainer.pid)
        mine = [g for g in gpus.values() if g.held_by == run.job and g.utilization is not None]
        return {
            "t": time.time(),
            "gpus": [
                {
                    "index": g.index,
                    "utilization": g.utilization,
                    "memory_used_mib": g.memory_used_mib,
                    "memory_mib": g.memory_mib,
                }
                for g in mine
            ],
            "cpu_percent": cpu,
            "rss_mib": rss,
        }

    def _usage(self, pid: int) -> tuple[float, int]:
        """Return percent of one core and MiB, of the trainer and its children."""
        cpu, rss = 0.0, 0
        with contextlib.suppress(psutil.Error):
            root = self._seen.setdefault(pid, psutil.Process(pid))
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    known = self._seen.setdefault(process.pid, process)
                    cpu += known.cpu_percent()
                    rss += known.memory_info().rss
        return round(cpu, 1), rss >> 20
