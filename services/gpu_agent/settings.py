"""Settings of the agent, beside the shared ones (environment prefix TRAINYARD_)."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import psutil
from pydantic import Field

from services.gpu_agent.identity import read_host
from services.gpu_agent.layout import HostFiles
from shared.settings import Settings


class AgentSettings(Settings):
    """Every path is absolute after validation."""

    agent_home: Path | None = None
    """TRAINYARD_AGENT_HOME: id, locks and state of this host; default `{home}/agents/local`, the embedded host."""
    agent_work_dir: Path | None = None
    """Where the files of jobs lie; default `{agent_home}/jobs`. A local disk, for the locks."""
    agent_label: str = ""
    """Shown for this host; default the label it joined with, else its hostname."""
    agent_slots: int = Field(default=0, ge=0, le=1024)
    """CPU slots of a host without GPU; 0: one a core."""
    agent_heartbeat_seconds: float = Field(default=5.0, gt=0, le=60)
    agent_shared_paths: str = ""
    """Colon-separated folders that are the same on every host that declares them."""
    agent_zygote: bool = True
    """Keep a warm process for quick starts; it holds about 450 MB, most of it shared with trainers."""

    agent_rules: bool = True
    """Run the reward service of this host in rules-only mode, beside the trainers."""
    agent_verl_python: str = ""
    """Interpreter of the environment that has verl; default the agent's own. Trainers read it from the environment."""
    reward_token: str | None = None
    """Bearer token for the central reward service, where it asks for one; trainers with rewards get it as a secret."""

    def model_post_init(self, context: object) -> None:
        """Make paths absolute."""
        super().model_post_init(context)
        for name in ("agent_home", "agent_work_dir"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, value.expanduser().resolve())

    @property
    def files(self) -> HostFiles:
        """Return where this host's files lie; the embedded one keeps checkpoints in TRAINYARD_CHECKPOINT_DIR."""
        embedded = self.home / "agents" / "local"
        home = self.agent_home or embedded
        work_dir = self.agent_work_dir or home / "jobs"
        return HostFiles(home, work_dir, self.checkpoint_dir if home == embedded else None)

    @property
    def roots(self) -> tuple[Path, ...] | None:
        """Return the folders that jobs may read; a host that joined an api beyond loopback is restricted like it."""
        if read_host(self.files.host).get("restrict_paths"):
            return self.restricted_roots
        return super().roots

    @property
    def label(self) -> str:
        """Return the name to show. Raises AgentRefused when host.json is damaged."""
        return self.agent_label or read_host(self.files.host).get("label") or platform.node()

    @property
    def slots(self) -> int:
        """Return how many CPU slots a host without GPU offers."""
        return self.agent_slots or os.cpu_count() or 1

    @property
    def central_reward_url(self) -> str | None:
        """Return TRAINYARD_REWARD_URL, else where the reward service of this home answers now, else None."""
        if self.reward_url:
            return self.reward_url.rstrip("/")
        try:
            told = json.loads((self.home / "run" / "reward.json").read_bytes())
            return str(told["url"]) if psutil.pid_exists(int(told["pid"])) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def shared_paths(self) -> tuple[str, ...]:
        """Return the declared shared folders, absolute."""
        named = [p for p in self.agent_shared_paths.split(":") if p]
        return tuple(str(Path(p).expanduser().resolve()) for p in named)
