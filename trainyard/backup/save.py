"""`trainyard backup`: everything that only the databases of a stack know, in one file, while the stack runs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shared.runs import write_atomic_json
from shared.settings import Settings
from trainyard.backup import archive
from trainyard.backup.archive import Entry, Manifest, digest
from trainyard.backup.cut import DatabasesBusy, copy, cut
from trainyard.backup.members import DATABASES, MASTER_KEY, MEMBERS, REQUIRED
from trainyard.backup.stack import ensure_stack_id

LAST = "last-backup.json"
"""Below the home: when the last backup was made, and where it went."""
_SHOWN = ("api_host", "api_port", "nats_port", "nats_store_mib", "data_roots", "allowed_origins")
_SEALED = {"api/main.db": "job_secret", "reward/reward.db": "providers"}
"""Database → table with values that a master key seals."""
POSTGRES_STEPS = (
    "The databases are on PostgreSQL, which this command does not copy. Use its own tools, which also take one moment of all schemas:\n"
    '  pg_dump --format=custom --schema=api --schema=telemetry --schema=scheduler --schema=reward --file=trainyard.dump "$URL"\n'
    "and keep keys/master.key and nats/hosts.json of TRAINYARD_HOME. To restore: stop api and scheduler, then\n"
    '  pg_restore --clean --if-exists --dbname="$URL" trainyard.dump\n'
    "  trainyard restore --mark\n"
    "where $URL is TRAINYARD_DATABASE_URL without `+psycopg`."
)


class BackupRefused(RuntimeError):
    """No backup was made; the sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A backup that was made."""

    path: Path
    manifest: Manifest
    size: int


def default_name(now: datetime) -> str:
    """Return the name of a backup made at `now`."""
    return f"trainyard-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}.tar"


def save(settings: Settings, target: Path, *, with_master_key: bool, now: datetime) -> Saved:
    """Make a backup of the stack of `settings.home`, running or not. Raises BackupRefused; then nothing is left behind."""
    home = settings.home
    _check(settings, target, with_master_key)
    stack = ensure_stack_id(home)
    try:
        with _workspace(target) as folder:
            files = {m.name: folder / m.name.replace("/", "_") for m in MEMBERS}
            revisions = _copy_databases(home, files)
            for member in MEMBERS:
                source = home / member.name
                wanted = member.name != MASTER_KEY or with_master_key
                if member.kind == "file" and wanted and source.exists():
                    shutil.copyfile(source, files[member.name])
            there = {name: path for name, path in files.items() if path.exists()}
            key_ids, secrets = _secrets(files)
            manifest = Manifest(
                version=_version(),
                made_at=now,
                stack=stack,
                home=str(home),
                checkpoint_dir=str(settings.checkpoint_dir),
                settings={name: getattr(settings, name) for name in _SHOWN},
                secrets=secrets,
                key_ids=key_ids,
                members=tuple(
                    Entry(
                        name=name, size=path.stat().st_size, sha256=digest(path),
                        revision=revisions.get(name),
                    )
                    for name, path in there.items()
                ),
            )  # fmt: skip
            archive.write(target, manifest, there)
    except FileExistsError:
        raise BackupRefused(
            f"{target} is there already, and nothing is overwritten. Name another file."
        ) from None
    except DatabasesBusy as error:
        raise BackupRefused(
            f"The databases were locked for too long ({error}). Try again when there is less to do."
        ) from error
    except (sqlite3.Error, OSError) as error:
        raise BackupRefused(
            f"The backup could not be written: {error}. Nothing was left behind."
        ) from error
    with contextlib.suppress(OSError):
        write_atomic_json(home / LAST, {"made_at": now.isoformat(), "path": str(target)})
    return Saved(target, manifest, target.stat().st_size)


def last(home: Path) -> tuple[datetime, str] | None:
    """Return when the last backup of `home` was made and where it went, or None."""
    try:
        document = json.loads((home / LAST).read_bytes())
        return datetime.fromisoformat(document["made_at"]), str(document["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check(settings: Settings, target: Path, with_master_key: bool) -> None:
    if settings.database_url is not None and not settings.database_url.startswith("sqlite"):
        raise BackupRefused(POSTGRES_STEPS)
    missing = [name for name in REQUIRED if not (settings.home / name).exists()]
    if missing:
        raise BackupRefused(
            f"{settings.home} holds no {missing[0]}: no stack ever ran there. Set TRAINYARD_HOME to the home of your stack."
        )
    if with_master_key and not (settings.home / MASTER_KEY).exists():
        raise BackupRefused(
            f"{settings.home / MASTER_KEY} is not there, so it cannot be part of the backup."
        )
    if target.exists():
        raise BackupRefused(
            f"{target} is there already, and nothing is overwritten. Name another file."
        )
    if not target.parent.is_dir():
        raise BackupRefused(
            f"{target.parent} is no folder. Make it first, or name another one with --out."
        )


@contextlib.contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """Yield a private folder on the volume of `target`."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".trainyard-backup-") as name:
        yield Path(name)


def _copy_databases(home: Path, files: dict[str, Path]) -> dict[str, str]:
    paths = {m.name: home / m.name for m in DATABASES if (home / m.name).exists()}
    with cut(list(paths.values())) as readers:
        return {name: copy(readers[path], files[name]) for name, path in paths.items()}


def _secrets(files: dict[str, Path]) -> tuple[tuple[str, ...], int]:
    """Return the ids of the keys that seal something in the copies, and how many values that is."""
    ids: Counter[str] = Counter()
    for name, table in _SEALED.items():
        if files[name].exists():
            with contextlib.closing(
                sqlite3.connect(f"file:{files[name]}?mode=ro", uri=True)
            ) as copied:
                query = (
                    f"SELECT key_id, count(*) FROM {table} WHERE key_id IS NOT NULL GROUP BY key_id"  # noqa: S608
                )
                ids.update({str(row[0]): int(row[1]) for row in copied.execute(query)})
    return tuple(sorted(ids)), ids.total()


def _version() -> str:
    try:
        return importlib.metadata.version("trainyard")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
