"""An agent that is told to leave while much waits in its files leaves in time: the rest comes with the next start."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.gpu_agent.daemon import Agent
from services.gpu_agent.relay import Relay
from services.gpu_agent.settings import AgentSettings


async def test_the_last_flush_keeps_to_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(_: Relay) -> bool:
        time.sleep(0.5)
        return True

    monkeypatch.setattr(Relay, "read_once", slow)
    monkeypatch.setattr(Relay, "has_queue", True)
    agent = Agent(AgentSettings(home=tmp_path, agent_zygote=False), "h1")
    agent.bus = SimpleNamespace(is_connected=True)  # type: ignore[assignment]
    began = time.monotonic()
    await agent._flush(0.4)
    assert time.monotonic() - began < 15.0
