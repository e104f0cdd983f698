"""A stack whose one host runs paced_trainer.py; every part is a process of its own, as in production."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.embedded import job, make_model
from services.gpu_agent.identity import ensure_host, host_id
from services.gpu_agent.settings import AgentSettings
from shared.bus.credentials import add_host_key, create_host_key, create_service_keys
from tests.e2e.stack import Stack, until
from trainyard import Client

SERVICES = {"api": "services.api", "scheduler": "services.scheduler", "broker": "nats-server"}


@dataclass
class Paced:
    """The stack, its agent and what it needs to run a plan."""

    stack: Stack
    client: Client
    agent: subprocess.Popen[bytes]
    model: Path

    def submit(self, **plan: Any) -> str:
        """Start a run with this plan (see paced_trainer.py); returns the job's id."""
        body = job(self.model, int(plan["lines"])) | {"description": json.dumps(plan)}
        return self.client.jobs.submit(body).uuid

    def wait_started(self, *jobs: str) -> None:
        """Wait until these run."""
        for uuid in jobs:
            until(lambda u=uuid: self.client.jobs.get(u).started_at, 30, "a run", self.stack)

    def processes(self) -> dict[str, psutil.Process]:
        """Return the processes through which telemetry passes, by name."""
        found = {name: psutil.Process(self.stack.pid_of(what)) for name, what in SERVICES.items()}
        return found | {"agent": psutil.Process(self.agent.pid)}

    def trainers(self, *jobs: str) -> list[psutil.Process]:
        """Return the trainer of each run."""
        return [psutil.Process(self.stack.trainer_pid(job, 1)) for job in jobs]


@contextmanager
def paced(slots: int = 4) -> Iterator[Paced]:
    """Start it with `slots` places for runs, and stop it."""
    with tempfile.TemporaryDirectory(prefix="trainyard-bench-") as name:
        stack = Stack(
            Path(name),
            "--no-agent",
            TRAINYARD_AGENT_SLOTS=str(slots),
            TRAINYARD_AGENT_ZYGOTE="0",
            TRAINYARD_AGENT_RULES="0",
        )
        settings = AgentSettings(home=stack.home)
        host = host_id(ensure_host(settings.files))
        create_service_keys(stack.home)
        add_host_key(stack.home, host, create_host_key(stack.home, host))
        with ExitStack() as parts:
            parts.callback(stack.stop)
            client = stack.start()
            agent = _start_agent(stack)
            parts.callback(_end_runs, stack, agent)
            until(lambda: any(h.online for h in client.hosts.list()), 30, "the host", stack)
            yield Paced(stack, client, agent, make_model(stack.home / "tiny"))


def _start_agent(stack: Stack) -> subprocess.Popen[bytes]:
    with (stack.home / "agent.log").open("ab") as output:
        script = str(Path(__file__).with_name("paced_agent.py"))
        root = str(Path(__file__).resolve().parent.parent)
        return subprocess.Popen(
            [sys.executable, script],
            env=stack.env | {"PYTHONPATH": root},
            stdout=output,
            stderr=output,
            cwd=root,
        )


def _end_runs(stack: Stack, agent: subprocess.Popen[bytes]) -> None:
    """End the agent with SIGTERM and every trainer that is left, and wait until they are gone."""
    agent.terminate()
    try:
        agent.wait(timeout=20)
    except subprocess.TimeoutExpired:
        agent.kill()
    killed = []
    for path in stack.home.glob("agents/local/jobs/*/attempts/*/pid.json"):
        for role in ("shim", "trainer"):
            process = _of(json.loads(path.read_text()).get(role), str(path.parent))
            if process is not None:
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, timeout=10)


def _of(noted: dict[str, int] | None, attempt: str) -> psutil.Process | None:
    """Return a process of this attempt, never another that has its number by now."""
    try:
        process = psutil.Process(noted["pid"]) if noted else None
        return process if process and attempt in " ".join(process.cmdline()) else None
    except psutil.Error:
        return None
