"""The rules-only reward service of a host: once it was told to end, no other is started in its place."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from services.gpu_agent import rules_service
from services.gpu_agent.rules_service import RulesService


def alive(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TRAINYARD_HOME") == str(home) and process.is_running():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("when", ["answering", "starting"])
async def test_it_stays_away_after_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(rules_service, "CHECK_SECONDS", 0.05)
    service = RulesService(tmp_path)
    looking = asyncio.create_task(service.run())
    try:
        async with asyncio.timeout(60):
            while not (alive(tmp_path) if when == "starting" else service.url):
                await asyncio.sleep(0.05)
        await service.stop()
        await asyncio.wait_for(looking, 60)  # it looked again, and started none
        async with asyncio.timeout(60):
            while alive(tmp_path):
                await asyncio.sleep(0.1)
    finally:
        looking.cancel()
        for process in alive(tmp_path):
            process.kill()
