"""A host beside the stack: it joins by a code as an operator's does and runs its agent behind a line that tests can cut."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.stack import Stack
from tests.faults.partitions.cuts import Cut, Line

TRAINYARD = [sys.executable, "-P", "-m", "trainyard.cli.main"]
JOIN_SECONDS = 360
LEAVE_SECONDS = 120


@dataclass
class SecondHost:
    """Joined by `join`, started by `start`; `stop` ends the agent and nothing else."""

    stack: Stack
    home: Path
    label: str
    line: Line
    env: dict[str, str] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    _joining: subprocess.Popen[bytes] | None = None
    _agent: subprocess.Popen[bytes] | None = None

    @property
    def jobs_dir(self) -> Path:
        return self.home / "agents" / "local" / "jobs"

    @property
    def agent_pid(self) -> int:
        assert self._agent is not None
        return self._agent.pid

    def join(self) -> None:
        """Begin joining; hosts may do that side by side."""
        self.home.mkdir(parents=True)
        code = self.stack.client.hosts.join_code()["code"]
        command = [*TRAINYARD, "agent", "join", self.line.api_url, code, "--label", self.label]
        self._joining = self._run(command, "join.log")

    def start(self) -> None:
        """Wait until it has joined and start its agent."""
        assert self._joining is not None
        log = self.home / "join.log"
        assert self._joining.wait(JOIN_SECONDS) == 0, log.read_text()
        self._agent = self._run([*TRAINYARD, "agent"], "agent.log")

    def _run(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        env = os.environ | {
            "TRAINYARD_HOME": str(self.home),
            "TRAINYARD_CHECKPOINT_DIR": str(self.home / "checkpoints"),
            "TRAINYARD_NATS_URL": self.line.broker_url,
            "TRAINYARD_AGENT_ZYGOTE": "false",
            "OMP_NUM_THREADS": "1",
            **self.env,
        }
        with (self.home / log).open("ab") as output:
            return subprocess.Popen(
                [*self.line.enter, *command], env=env, stdout=output, stderr=output
            )

    def stop(self) -> None:
        """SIGTERM; SIGKILL when that does not help."""
        for process in (self._joining, self._agent):
            if process is None or process.poll() is not None:
                continue
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LEAVE_SECONDS)
                continue
            process.kill()
            process.wait(LEAVE_SECONDS)
