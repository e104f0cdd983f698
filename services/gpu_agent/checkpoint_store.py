"""Checkpoint folders on disk: sealed by a manifest of hashes, visible by one rename, read without torch.

A folder `checkpoint-<step>` that holds no readable manifest, or lacks a file the manifest names, does not exist for anyone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from services.gpu_agent.exchange import exchange
from shared.runs import fsync_directory

MANIFEST = "manifest.json"
LEFTOVER_PREFIX = ".tmp-"
VERSION = 1
Kind = Literal["full", "lora"]

_NAME = re.compile(r"checkpoint-(\d{1,12})")
_CHUNK = 1 << 20
_IO_THREADS = 4


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One complete checkpoint. `size_bytes` counts the files of the manifest."""

    step: int
    path: Path
    kind: Kind
    size_bytes: int
    manifest_hash: str
    created_at: float
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """What the trainer needs to go on: best value so far, tokens seen."""


def folder_name(step: int) -> str:
    """Return the name of the folder of one step."""
    return f"checkpoint-{step}"


def step_in(name: str) -> int | None:
    """Return the step in the name of a checkpoint's folder, or None for another name."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


def begin(checkpoint_dir: Path, step: int) -> Path:
    """Make the hidden folder in which a checkpoint is written before `publish` shows it."""
    folder = checkpoint_dir / f"{LEFTOVER_PREFIX}{folder_name(step)}-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    return folder


def publish(
    temporary: Path,
    step: int,
    kind: Kind,
    created_at: float,
    metrics: Mapping[str, float | None],
    trainer: Mapping[str, Any],
) -> Checkpoint:
    """Hash and fsync every file, write the manifest last, rename to `checkpoint-<step>`, fsync the parent.

    An older folder of the same step is replaced, and there is never a moment without either, where the file system
    can exchange two names. Raises OSError; then nothing is visible that was not before.
    """
    files = sorted(p for p in temporary.rglob("*") if p.is_file())
    with ThreadPoolExecutor(
        _IO_THREADS
    ) as pool:  # hashing and fsync both let go of the interpreter lock
        digests = list(pool.map(_digest_durably, files))
    entries = [
        {"path": f.relative_to(temporary).as_posix(), "size": size, "sha256": digest}
        for f, (size, digest) in zip(files, digests, strict=True)
    ]
    document = {
        "version": VERSION,
        "step": step,
        "kind": kind,
        "created_at": created_at,
        "files": entries,
        "metrics": dict(metrics),
        "trainer": dict(trainer),
    }
    with (temporary / MANIFEST).open("xb") as file:
        file.write(json.dumps(document, allow_nan=False, indent=1).encode())
        file.flush()
        os.fsync(file.fileno())
    for folder in {temporary, *(f.parent for f in files)}:
        fsync_directory(folder)
    final = temporary.parent / folder_name(step)
    _show(temporary, final)
    sealed = read(final)
    if isinstance(sealed, str):
        raise OSError(f"{final}: {sealed}")
    return sealed


def read(folder: Path) -> Checkpoint | str:
    """Return the checkpoint in `folder` if its manifest is whole and every file has its size; else the problem."""
    match = _NAME.fullmatch(folder.name)
    if match is None:
        return "the folder is not named checkpoint-<step>"
    try:
        raw = (folder / MANIFEST).read_bytes()
        manifest = json.loads(raw)
        if manifest["version"] != VERSION:
            return f"its manifest has version {manifest['version']}; this release reads {VERSION}"
        if manifest["step"] != int(match.group(1)):
            return f"its manifest is of step {manifest['step']}"
        files = [(_inside(folder, e["path"]), int(e["size"])) for e in manifest["files"]]
        for path, size in files:
            if path.stat().st_size != size:
                return f"{path.name} has {path.stat().st_size} bytes, the manifest says {size}"
        return Checkpoint(
            step=manifest["step"],
            path=folder,
            kind=manifest["kind"],
            size_bytes=sum(size for _, size in files),
            manifest_hash=hashlib.sha256(raw).hexdigest(),
            created_at=float(manifest["created_at"]),
            metrics=manifest.get("metrics", {}),
            trainer=manifest.get("trainer", {}),
        )
    except FileNotFoundError as error:
        return f"{Path(error.filename or MANIFEST).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({type(error).__name__}: {error})"


def list_complete(checkpoint_dir: Path) -> list[Checkpoint]:
    """Return the complete checkpoints of a job, newest step first; sizes are checked, contents are not."""
    if not checkpoint_dir.is_dir():
        return []
    found = (read(p) for p in checkpoint_dir.iterdir() if _NAME.fullmatch(p.name) and p.is_dir())
    return sorted(
        (c for c in found if isinstance(c, Checkpoint)), key=lambda c: c.step, reverse=True
    )


def verify(folder: Path) -> str | None:
    """Read every byte and compare with the manifest: None if all is as written, else the problem."""
    sealed = read(folder)
    if isinstance(sealed, str):
        return sealed
    manifest = json.loads((folder / MANIFEST).read_bytes())
    for entry in manifest["files"]:
        try:
            if _sha256(_inside(folder, entry["path"])) != entry["sha256"]:
                return f"{entry['path']} differs from what was written"
        except OSError as error:
            return f"{entry['path']} cannot be read ({error.strerror})"
    return None


def newest_readable(checkpoint_dir: Path) -> Checkpoint | None:
    """Return the newest checkpoint whose every byte is as written, or None."""
    return next((c for c in list_complete(checkpoint_dir) if verify(c.path) is None), None)


def manifest_hash(folder: Path) -> str | None:
    """Return the SHA-256 of the manifest, which names the checkpoint's content, or None where it is not complete."""
    sealed = read(folder)
    return sealed.manifest_hash if isinstance(sealed, Checkpoint) else None


def delete(checkpoint: Checkpoint) -> None:
    """Remove a checkpoint so that no reader ever sees half of it. Raises OSError."""
    _move_aside(checkpoint.path)
    fsync_directory(checkpoint.path.parent)


def sweep_leftovers(checkpoint_dir: Path) -> list[str]:
    """Remove what cut-short saves and deletions left, and return the names. Call it only while no trainer writes here."""
    if not checkpoint_dir.is_dir():
        return []
    leftovers = [p for p in checkpoint_dir.iterdir() if p.name.startswith(LEFTOVER_PREFIX)]
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
    return sorted(p.name for p in leftovers)


def retained(steps: Iterable[int], limit: int | None, best_step: int | None) -> set[int]:
    """Return the steps to keep: first, best, last and the newest `limit` of the others; None keeps all."""
    ordered = sorted(set(steps))
    if limit is None or not ordered:
        return set(ordered)
    fixed = {ordered[0], ordered[-1]} | {s for s in ordered if s == best_step}
    others = [s for s in ordered if s not in fixed]
    return fixed | set(others[max(len(others) - limit, 0) :])


def _inside(folder: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"{name!r} lies outside the checkpoint")
    return folder / pure


def _show(temporary: Path, final: Path) -> None:
    """Give a sealed folder its name; what had that name before is removed afterwards."""
    replaced = final.exists() and exchange(temporary, final)
    if not replaced:
        _move_aside(final)
        temporary.rename(final)
    fsync_directory(final.parent)
    if replaced:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_aside(folder: Path) -> None:
    if not folder.exists():
        return
    aside = folder.parent / f"{LEFTOVER_PREFIX}old-{folder.name}-{secrets.token_hex(4)}"
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_durably(path: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    with path.open("r+b") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            digest.update(chunk)
        os.fsync(file.fileno())
    return size, digest.hexdigest()
