"""The archive: an uncompressed tar, its manifest first, every member with its hash; parsed once, refused by name."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.runs import fsync_directory
from trainyard.backup.members import BY_NAME, revisions

MANIFEST = "manifest.json"
FORMAT = 1
"""Raised when an older version could not restore what a newer one writes."""
_PIECE = 1 << 20
_MANIFEST_BYTES = 1 << 20


class ArchiveRefused(RuntimeError):
    """The file is no backup that can be restored here; the sentence names the member and says why."""


class Entry(BaseModel):
    """One member in the manifest."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    size: int
    sha256: str
    revision: str | None = None
    """Schema revision of a database."""


class Manifest(BaseModel):
    """What the archive says of itself."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    product: str = "trainyard"
    format: int = FORMAT
    version: str
    made_at: datetime
    stack: str
    """Id of the stack: a backup goes only into a home of the same stack, or into an empty one."""
    home: str
    checkpoint_dir: str
    settings: dict[str, Any] = {}
    """What the stack was run with, for people: nothing is set from it."""
    secrets: int = 0
    """Encrypted values in the databases."""
    key_ids: tuple[str, ...] = ()
    """Ids of the master keys that they need."""
    members: tuple[Entry, ...] = ()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(target: Path, manifest: Manifest, files: Mapping[str, Path]) -> None:
    """Write the archive, mode 0600, complete or not at all. Raises OSError, FileExistsError."""
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                text = manifest.model_dump_json(indent=1).encode()
                _add(tar, MANIFEST, io.BytesIO(text), len(text))
                for entry in manifest.members:
                    with files[entry.name].open("rb") as source:
                        _add(tar, entry.name, source, entry.size)
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: a file that is there already is never replaced.
        os.link(part, target)
    finally:
        part.unlink(missing_ok=True)
    fsync_directory(target.parent)


def _add(tar: tarfile.TarFile, name: str, source: Any, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    tar.addfile(info, source)


def read_manifest(path: Path) -> Manifest:
    """Return the manifest, checked against what this version can restore. Raises ArchiveRefused, OSError."""
    try:
        with tarfile.open(path, "r:") as tar:
            first = tar.next()
            if first is None or first.name != MANIFEST or first.size > _MANIFEST_BYTES:
                raise ArchiveRefused(
                    f"{path} is no backup of Trainyard: it does not begin with {MANIFEST}."
                )
            source = tar.extractfile(first)
            body = source.read() if source else b""
        document = json.loads(body)
        if not isinstance(document, dict) or document.get("product") != "trainyard":
            raise ArchiveRefused(f"{path} is no backup of Trainyard: {MANIFEST} names no product.")
        if int(document.get("format", 0)) > FORMAT:
            raise ArchiveRefused(
                f"{MANIFEST}: the backup was made by a newer version ({document.get('version')}, format "
                f"{document['format']}; this version reads up to {FORMAT}). Install that version, then restore."
            )
        manifest = Manifest.model_validate(document)
    except (tarfile.TarError, EOFError) as error:
        raise ArchiveRefused(
            f"{path} is no backup of Trainyard, or it is damaged: {error}."
        ) from error
    except (ValueError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ArchiveRefused(f"{MANIFEST} of {path} is damaged: {reason}.") from error
    for entry in manifest.members:
        _check(entry)
    return manifest


def _check(entry: Entry) -> None:
    member = BY_NAME.get(entry.name)
    if member is None:
        raise ArchiveRefused(
            f"{entry.name}: this version knows no such member; the backup was made by a newer one."
        )
    if member.kind == "database" and entry.revision not in revisions(member):
        raise ArchiveRefused(
            f"{entry.name}: its schema ({entry.revision}) is newer than this version knows. "
            "Install the version that made the backup, or a later one."
        )


def unpack(path: Path, manifest: Manifest, folder: Path) -> dict[str, Path]:
    """Write all members below `folder`, each verified, and return their paths by name. Raises ArchiveRefused, OSError."""
    wanted = {entry.name: entry for entry in manifest.members}
    found: dict[str, Path] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            tar.next()
            while (info := tar.next()) is not None:
                entry = wanted.get(info.name)
                if entry is None or not info.isfile() or info.name in found:
                    raise ArchiveRefused(
                        f"{info.name}: it does not stand in {MANIFEST}; the archive was changed."
                    )
                found[info.name] = _extract(tar, info, entry, folder / info.name)
    except (tarfile.TarError, EOFError) as error:
        raise ArchiveRefused(f"{path} is damaged: {error}.") from error
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise ArchiveRefused(f"{missing[0]}: it is missing from {path}; the archive is cut short.")
    return found


def _extract(tar: tarfile.TarFile, info: tarfile.TarInfo, entry: Entry, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    source = tar.extractfile(info)
    assert source is not None
    seen, size = hashlib.sha256(), 0
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while piece := source.read(_PIECE):
            seen.update(piece)
            size += len(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if (size, seen.hexdigest()) != (entry.size, entry.sha256):
        raise ArchiveRefused(f"{entry.name}: it is damaged (its hash differs from {MANIFEST}).")
    return target
