"""What this host has and what holds it: GPUs by NVML, or CPU slots where there is none; memory, disk, versions."""

from __future__ import annotations

import contextlib
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from services.gpu_agent.layout import HostFiles
from services.gpu_agent.processes import holder_of
from shared.disk.levels import Volume
from shared.disk.volumes import volume_of
from shared.jobs.resources import GpuInfo, HostInventory
from shared.log import logger

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
_MIB = 1024 * 1024
_FOREIGN_MIB = 256
"""Memory that others may use on a GPU before it counts as taken by them: a desktop session takes some."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What does not change while the agent runs."""

    label: str
    slots: int
    shared_paths: tuple[str, ...]
    version: str
    packages: dict[str, str]


class Nvml:
    """NVIDIA's management library; `present` is False where driver or package is missing."""

    def __init__(self) -> None:
        """Open the library if it is there."""
        self._lib: Any = None
        try:
            import pynvml  # noqa: PLC0415 - only hosts with the agent extra have it

            pynvml.nvmlInit()
            if pynvml.nvmlDeviceGetCount() > 0:
                self._lib = pynvml
        except Exception as error:  # noqa: BLE001 - its errors have no common base without the library
            logger("inventory").info("no_nvml", error=str(error)[:200])

    @property
    def present(self) -> bool:
        """Tell whether this host has NVIDIA GPUs."""
        return self._lib is not None

    def read(self, held_by: Callable[[str], str | None]) -> tuple[GpuInfo, ...]:
        """Return every GPU; one that fails to answer is left out, so that nothing is placed on it."""
        found = []
        for index in range(self._lib.nvmlDeviceGetCount()):
            try:
                found.append(self._one(index, held_by))
            except self._lib.NVMLError as error:
                logger("inventory").warning("gpu_unreadable", index=index, error=str(error))
        return tuple(found)

    def _one(self, index: int, held_by: Callable[[str], str | None]) -> GpuInfo:
        lib = self._lib
        handle = lib.nvmlDeviceGetHandleByIndex(index)
        uuid = _text(lib.nvmlDeviceGetUUID(handle))
        memory = lib.nvmlDeviceGetMemoryInfo(handle)
        utilization = None
        with contextlib.suppress(lib.NVMLError):
            utilization = float(lib.nvmlDeviceGetUtilizationRates(handle).gpu)
        holder = held_by(uuid)
        if holder is None:
            with contextlib.suppress(lib.NVMLError):
                others = lib.nvmlDeviceGetComputeRunningProcesses(handle)
                used = sum((p.usedGpuMemory or 0) for p in others) // _MIB
                holder = "foreign" if used > _FOREIGN_MIB else None
        return GpuInfo(
            index=index,
            uuid=uuid,
            name=_text(lib.nvmlDeviceGetName(handle)),
            memory_mib=memory.total // _MIB,
            memory_used_mib=memory.used // _MIB,
            utilization=utilization,
            held_by=holder,
        )


class Inventory:
    """Reads the host; cheap enough for every heartbeat."""

    def __init__(self, files: HostFiles, facts: HostFacts) -> None:
        """Open NVML; the first CPU figure is None."""
        self._files = files
        self._facts = facts
        self._nvml = Nvml()
        psutil.cpu_percent()

    @property
    def device(self) -> str:
        """Return `cuda`, or `cpu` when the slots are cores."""
        return "cuda" if self._nvml.present else "cpu"

    def read(self) -> HostInventory:
        """Return what is there now. It may block for some milliseconds."""
        memory = psutil.virtual_memory()
        return HostInventory(
            hostname=platform.node(),
            label=self._facts.label,
            device=self.device,
            gpus=self.gpus(),
            cpu_count=psutil.cpu_count() or 1,
            cpu_percent=psutil.cpu_percent(),
            memory_mib=memory.total // _MIB,
            memory_used_mib=(memory.total - memory.available) // _MIB,
            disk_free_mib=shutil.disk_usage(_existing(self._files.work_dir)).free // _MIB,
            volumes=self.volumes(),
            agent_version=self._facts.version,
            python_version=sys.version.split()[0],
            packages=self._facts.packages,
            work_dir=str(self._files.work_dir),
            shared_paths=self._facts.shared_paths,
        )

    def volumes(self) -> tuple[Volume, ...]:
        """Return the volumes of the folders that runs write to."""
        folders = [self._files.work_dir, self._files.checkpoint_root]
        found = [volume_of(f) for f in folders if f is not None]
        return tuple(v for v in found if v is not None)

    def gpus(self) -> tuple[GpuInfo, ...]:
        """Return GPUs or CPU slots and who holds each."""
        if self._nvml.present:
            return self._nvml.read(lambda uuid: holder_of(self._files.gpu_lock(uuid)))
        memory = psutil.virtual_memory()
        slots = self._facts.slots
        share = memory.total // _MIB // slots
        return tuple(
            GpuInfo(
                index=i,
                uuid=f"slot-{i}",
                name="CPU slot",
                memory_mib=share,
                held_by=holder_of(self._files.gpu_lock(f"slot-{i}")),
            )
            for i in range(slots)
        )


def versions() -> tuple[str, dict[str, str]]:
    """Return the agent's version and those of the libraries that trainers use."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    try:
        own = metadata.version("trainyard")
    except metadata.PackageNotFoundError:
        own = "0"
    return own, found


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
