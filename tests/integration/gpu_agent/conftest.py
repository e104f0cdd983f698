"""A control plane on a real broker, and agents as tasks or as processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.gpu_agent.daemon import Agent, Options
from services.gpu_agent.layout import HostFiles
from services.gpu_agent.processes import RunProcesses
from shared.bus.credentials import bus_config
from tests.conftest import BusFor, RunningBroker, eventually
from tests.integration.gpu_agent.agent_process import agent_settings, options
from tests.integration.gpu_agent.control_plane import ControlPlane

HOST = "box1"
END_SECONDS = 60.0
ROOT = Path(__file__).resolve().parents[3]


class AgentProcess:
    """The agent as `trainyard up` runs it: a process that a test may kill."""

    def __init__(self, broker: RunningBroker, *, zygote: bool = False) -> None:
        self.broker = broker
        self.zygote = zygote
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def files(self) -> HostFiles:
        return agent_settings(self.broker.home, self.broker.url).files

    async def start(self) -> None:
        self.files.ready.unlink(missing_ok=True)
        script = Path(__file__).with_name("agent_process.py")
        log = (self.broker.home / "agent.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-P", str(script), str(self.broker.home), self.broker.url, HOST,
                    "zygote" if self.zygote else "cold",
                ],
                stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        await eventually(self.files.ready.exists, 15)

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(timeout=END_SECONDS)
        self.process = None
        return code

    def processes(self, job: str, attempt: int = 1) -> RunProcesses:
        found = RunProcesses.read(self.files.job(job).attempt(attempt).pid)
        assert found is not None
        return found


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "tiny"
    command = [
        sys.executable,
        "-m",
        "services.gpu_agent.trainers.model_zoo",
        "tiny",
        "--out",
        str(out),
    ]
    subprocess.run(command, check=True, cwd=ROOT, timeout=480, capture_output=True)
    return out


@pytest.fixture
async def plane(bus_for: BusFor, streams: None) -> AsyncIterator[ControlPlane]:
    running = ControlPlane(await bus_for("scheduler"), await bus_for("api"), HOST)
    await running.start()
    yield running
    await running.close()


@pytest.fixture
def clean_up(home: Path) -> Iterator[None]:
    """End whatever runs of this test are left."""
    yield
    for path in home.glob("agents/local/jobs/*/attempts/*/pid.json"):
        processes = RunProcesses.read(path)
        for ref in (processes.trainer, processes.shim) if processes else ():
            if ref is not None:
                ref.send(signal.SIGKILL)


@pytest.fixture
async def agent_process(
    broker: RunningBroker, plane: ControlPlane, clean_up: None
) -> AsyncIterator[AgentProcess]:
    await broker.add_host(HOST)
    agent = AgentProcess(broker)
    yield agent
    if agent.process is not None:
        agent.end(signal.SIGKILL)


class LocalAgent:
    """The agent as a task of this process."""

    def __init__(self, broker: RunningBroker) -> None:
        self.broker = broker
        self.stop = asyncio.Event()
        self.agent: Agent | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(
        self,
        with_options: Options | None = None,
        *,
        zygote: bool = False,
        rules: bool = False,
        beat_every: float | None = None,
    ) -> Agent:
        """`beat_every`: seconds between two heartbeats that nothing calls for, from the first one on."""
        settings = agent_settings(self.broker.home, self.broker.url, zygote=zygote, rules=rules)
        self.stop = asyncio.Event()
        self.agent = Agent(settings, HOST, with_options or options())
        if beat_every is not None:
            self.agent.heartbeat.every = beat_every
        config = bus_config(settings, "agent", HOST)
        self._task = asyncio.create_task(self.agent.run(config, self.stop))
        await eventually(settings.files.ready.exists, 5)
        return self.agent

    async def end(self) -> None:
        if self._task is not None:
            self.stop.set()
            task, self._task = self._task, None
            await task


@pytest.fixture
async def local_agent(
    broker: RunningBroker, plane: ControlPlane, clean_up: None
) -> AsyncIterator[LocalAgent]:
    await broker.add_host(HOST)
    agent = LocalAgent(broker)
    yield agent
    await agent.end()
