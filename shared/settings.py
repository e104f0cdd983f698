"""Settings that every service shares, read once in its main module (environment prefix TRAINYARD_)."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

PROJECT_ROOT = Path(__file__).resolve().parent.parent
SECRET_VARIABLES = (
    "TRAINYARD_API_TOKEN",
    "TRAINYARD_DATABASE_URL",
    "TRAINYARD_MASTER_KEY",
    "TRAINYARD_NATS_URL",
    "TRAINYARD_REWARD_TOKEN",
)
"""What a process that does not read it must not inherit: anything it starts could show it."""


def without_secrets(env: Mapping[str, str], *, keep: Collection[str] = ()) -> dict[str, str]:
    """Return an environment without SECRET_VARIABLES, but for those in `keep`."""
    return {k: v for k, v in env.items() if k not in SECRET_VARIABLES or k in keep}


def forget_secrets() -> None:
    """Remove SECRET_VARIABLES from this process's environment, once they are read, so that no child inherits them."""
    for name in SECRET_VARIABLES:
        os.environ.pop(name, None)


class Settings(BaseSettings):
    """PRODUCT section 10; every path is absolute after validation."""

    model_config = SettingsConfigDict(env_prefix="TRAINYARD_", extra="ignore", frozen=True)

    home: Path = Field(default=PROJECT_ROOT / ".trainyard")
    """Every run-time file lies below it."""
    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8000, ge=0, le=65535)
    reward_port: int = Field(default=8100, ge=0, le=65535)
    reward_url: str | None = None
    """Where clients and trainers find the reward service; default: what the one of this home wrote."""
    nats_port: int = Field(default=4222, ge=0, le=65535)
    """0: any free one; `up` then writes the port it got to `home/run/nats.json`."""
    nats_url: str | None = None
    """An external broker; None: the embedded one of `home`."""
    nats_store_mib: int = Field(default=2048, ge=64)
    """Disk in MiB that the broker has for all streams together; the same for every service of a stack."""
    restart_cap_seconds: float = Field(default=10.0, gt=0)
    """Longest wait of `up` before it starts a service that dies again and again."""
    database_url: str | None = None
    """None: SQLite below `home`. PostgreSQL as `postgresql+psycopg://…`."""
    checkpoint_dir: Path = Field(default=Path("checkpoints"))
    api_token: str | None = None
    data_roots: str = ""
    """Colon-separated folders that jobs may read once the api is bound beyond loopback."""
    allowed_origins: str = ""
    """Comma-separated origins besides the api's own, for WebSocket and CORS."""
    log_level: str = "INFO"
    url: str | None = None
    """Where clients find the api; default http://127.0.0.1:<api_port>."""

    def model_post_init(self, _: object) -> None:
        """Make paths absolute, so that a service's working directory does not matter."""
        object.__setattr__(self, "home", self.home.expanduser().resolve())
        object.__setattr__(self, "checkpoint_dir", self.checkpoint_dir.expanduser().resolve())

    @property
    def is_loopback(self) -> bool:
        """Tell whether the api is bound to loopback only."""
        return self.api_host in {"127.0.0.1", "localhost", "::1"}

    @property
    def roots(self) -> tuple[Path, ...] | None:
        """Return the folders that jobs may read, or None where any readable path is allowed."""
        if self.is_loopback and not self.data_roots:
            return None
        return self.restricted_roots

    @property
    def restricted_roots(self) -> tuple[Path, ...]:
        """Return what TRAINYARD_DATA_ROOTS names, else the project's own folders."""
        named = [Path(p).expanduser().resolve() for p in self.data_roots.split(":") if p]
        own = [PROJECT_ROOT, self.checkpoint_dir, self.home / "datasets", self.home / "models"]
        return tuple(named or own)
