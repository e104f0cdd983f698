"""What a hook is given and what it may answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from services.gpu_agent.layout import AttemptFiles, HostFiles, JobFiles
from shared.disk.levels import Shortage
from shared.disk.volumes import volume_of
from shared.events.calls import ControlEntry
from shared.jobs.reasons import Reason
from shared.preflight.finding import Finding
from shared.preflight.model import ModelReport


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the attempt does not start. `job`: the job is wrong and fails; `host`: another host may take it."""

    fault: Literal["job", "host"]
    reason: Reason
    message_en: str
    message_zh: str
    shortage: Shortage | None = None

    @staticmethod
    def of(finding: Finding, reason: Reason, fault: Literal["job", "host"] = "job") -> Refusal:
        """Return the refusal that a finding stands for."""
        return Refusal(fault, reason, finding.message_en, finding.message_zh)

    @staticmethod
    def no_room(finding: Finding, folder: Path, need: int) -> Refusal:
        """Return the refusal for a folder without `need` bytes: another host may have them."""
        volume = volume_of(folder)
        short = Shortage(str(folder), need, volume.free) if volume else None
        return Refusal("host", Reason.DISK_FULL, finding.message_en, finding.message_zh, short)


@dataclass(slots=True)
class HookContext:
    """One attempt before its start; hooks fill in what they resolve."""

    entry: ControlEntry
    host: HostFiles
    roots: tuple[Path, ...] | None
    """Folders that jobs may read; None: any readable path."""
    project_root: Path
    device: str
    memory_mib: int
    """Of one device: a GPU, or the machine where slots are cores."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    """(level, text) for the head of the attempt's log."""
    model_path: str = ""
    model: ModelReport | None = None
    model_paths: dict[str, str] = field(default_factory=dict)
    """Every other model parameter by its place, resolved."""
    train_data_path: str = ""
    eval_data_path: str | None = None
    resume_from: Path | None = None
    skipped: frozenset[int] = frozenset()
    """Steps of checkpoints that are there and do not belong to the job's history."""
    datasets: dict[str, str] = field(default_factory=dict)
    """Path → SHA-256 of its content."""

    @property
    def config(self) -> dict[str, Any]:
        """The job's parameters."""
        return self.entry.config

    @property
    def job_files(self) -> JobFiles:
        """The job's folder."""
        return self.host.job(self.entry.job)

    @property
    def attempt_files(self) -> AttemptFiles:
        """The attempt's folder."""
        return self.job_files.attempt(self.entry.attempt)

    @property
    def checkpoint_dir(self) -> Path:
        """Where this job's checkpoints lie."""
        return self.host.checkpoints(self.entry.job)
