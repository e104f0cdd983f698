"""What a job asks for and what a host has."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from shared.disk.levels import Volume


class GpuInfo(BaseModel):
    """One GPU, or one CPU slot of a host that has no GPU."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    index: int
    uuid: str
    """Name of its lock on the host; `slot-0` for a CPU slot."""
    name: str
    memory_mib: int
    memory_used_mib: int = 0
    utilization: float | None = None
    """Percent, None where it cannot be measured."""
    held_by: str | None = None
    """Job id whose run holds the lock, `foreign` when something outside Trainyard does."""


class HostInventory(BaseModel):
    """What an agent reports about its host with each heartbeat."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hostname: str
    label: str
    device: str
    """`cuda`, or `cpu` when the slots are cores."""
    gpus: tuple[GpuInfo, ...] = ()
    cpu_count: int = 1
    cpu_percent: float | None = None
    memory_mib: int = 0
    memory_used_mib: int = 0
    disk_free_mib: int = 0
    volumes: tuple[Volume, ...] = ()
    """Of the folders that runs write to: jobs, checkpoints."""
    agent_version: str = ""
    python_version: str = ""
    packages: dict[str, str] = Field(default_factory=dict)
    work_dir: str = ""
    shared_paths: tuple[str, ...] = ()
    """Folders declared to be the same on every host that declares them."""
