"""What the agent itself has written is read at once, not with the next slow look of an idle host."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.gpu_agent import relay as relays
from services.gpu_agent.facts import RunAccepted, RunStarted
from services.gpu_agent.layout import JobFiles
from services.gpu_agent.relay import Relay
from services.gpu_agent.spool import AttemptSpool
from shared.clock import SystemClock


async def test_facts_are_read_when_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "IDLE_SECONDS", 60.0)
    monkeypatch.setattr(relays, "ACTIVE_SECONDS", 60.0)
    job = JobFiles(tmp_path / "job")
    job.attempt(1).root.mkdir(parents=True)
    clock = SystemClock()
    relay = Relay("h1", clock)
    reading = asyncio.create_task(relay.run_reader())
    try:
        await asyncio.sleep(0)  # an idle host: the reader sleeps
        spool = AttemptSpool(job, 1, now=clock.boot())
        spool.facts.append(RunAccepted(seq=0, t=1.0))
        relay.add(spool)
        await until(lambda: spool.streams["run"].read.seq == 1)
        spool.facts.append(RunStarted(seq=0, t=2.0, pid=1, boot_id="b", warm=True))
        relay.wake()
        await until(lambda: spool.streams["run"].read.seq == 2)
    finally:
        reading.cancel()


async def until(check: object) -> None:
    async with asyncio.timeout(30):
        while not check():  # type: ignore[operator]
            await asyncio.sleep(0.005)
