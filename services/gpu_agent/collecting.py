"""Removes the files of a deleted job; its last fact stays until the api has it."""

from __future__ import annotations

import shutil
from pathlib import Path

from services.gpu_agent.layout import HostFiles


def remove_files(host: HostFiles, job: str, keep_attempt: int) -> None:
    """Remove checkpoints, logs and attempts of a job but the facts of one attempt. It blocks. Raises OSError."""
    files = host.job(job)
    kept = files.attempt(keep_attempt)
    checkpoints = host.checkpoints(job)
    if checkpoints.exists():
        _remove(checkpoints)
    for path in _children(files.root):
        if path != files.attempts:
            _remove(path)
    for path in _children(files.attempts):
        if path != kept.root:
            _remove(path)
    for path in _children(kept.root):
        if path not in (kept.facts, kept.relay, kept.entry):
            _remove(path)


def remove_job(host: HostFiles, job: str) -> None:
    """Remove what `remove_files` had left. It blocks."""
    shutil.rmtree(host.job(job).root, ignore_errors=True)


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
