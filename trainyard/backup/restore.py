"""`trainyard restore`: a backup into a home, all of it or nothing, with what it replaces kept aside."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from shared.bus.keys import host_keys, write_atomically
from shared.keyring import key_id
from shared.settings import Settings
from trainyard.backup import archive, marks, swap
from trainyard.backup.archive import Manifest
from trainyard.backup.members import BY_NAME, DATABASES, MASTER_KEY, REQUIRED
from trainyard.backup.stack import ID_FILE, stack_id, stopped

_DOES_NOT_COUNT = frozenset({"run", "logs", swap.JOURNAL})
"""What a stack that never held anything, or this command itself, leaves in a home."""


class RestoreRefused(RuntimeError):
    """Nothing was changed; the sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Where the master key is to come from, beside the archive and the home."""

    file: Path | None = None
    without_secrets: bool = False


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done."""

    manifest: Manifest
    aside: Path | None
    """Where the replaced files are, or None where there were none."""
    keeps_bus: bool
    """The broker's store is there: what was asked for since the backup is taken back from it."""
    unreadable: tuple[str, ...]
    """Ids of master keys that secrets need and nobody has."""
    joined_since: tuple[str, ...]
    """Hosts that the home knows and the backup does not."""


def restore(settings: Settings, path: Path, *, force: bool, keys: Keys, now: datetime) -> Restored:
    """Put the backup `path` into `settings.home`.

    Raises RestoreRefused, archive.ArchiveRefused, marks.MarkRefused, stack.StackRuns, OSError: nothing was changed then.
    """
    home = settings.home
    if settings.database_url is not None and not settings.database_url.startswith("sqlite"):
        raise RestoreRefused(
            "TRAINYARD_DATABASE_URL names PostgreSQL, and a backup file holds SQLite databases. Use pg_restore, then `trainyard restore --mark`."
        )
    manifest = archive.read_manifest(path)
    held = {entry.name for entry in manifest.members}
    missing = [name for name in REQUIRED if name not in held]
    if missing:
        raise archive.ArchiveRefused(f"{missing[0]}: the backup does not hold it.")
    fresh = not home.exists()
    with stopped(home):
        swap.finish(home)
        _check_home(home, manifest, force)
        stamp = f"{now:%Y%m%dT%H%M%SZ}"
        staging, aside = home / f".restoring-{stamp}", home / f"before-restore-{stamp}"
        joined = sorted(host_keys(home))
        with _removed_on_error(staging, home if fresh else None):
            staging.mkdir(mode=0o700)
            found = archive.unpack(path, manifest, staging)
            unreadable = _settle_keys(home, staging, manifest, keys)
            members = _to_replace(home, staging, found)
            _check_databases(staging)
            urls = _urls(staging)
            marks.mark(urls, marks.new_id(), now.timestamp())
            write_atomically(staging / ID_FILE, manifest.stack + "\n")
            swap.begin(home, staging, aside, [*members, ID_FILE])
        swap.finish(home)
    known = host_keys(home)
    return Restored(
        manifest,
        aside if aside.exists() else None,
        (home / "nats" / "store").exists(),
        unreadable,
        tuple(host for host in joined if host not in known),
    )


def mark(settings: Settings, now: datetime) -> None:
    """Mark databases that were put back by other means. Raises marks.MarkRefused, stack.StackRuns."""
    url = settings.database_url
    with stopped(settings.home):
        if url is None or url.startswith("sqlite"):
            urls = _urls(settings.home)
        else:
            urls = dict.fromkeys(marks.SCHEMAS, url)
        marks.mark(urls, marks.new_id(), now.timestamp())


def _urls(folder: Path) -> dict[str, str]:
    there = (m.name for m in DATABASES if m.name in REQUIRED or (folder / m.name).exists())
    return {name: f"sqlite:///{folder / name}" for name in there}


def _check_home(home: Path, manifest: Manifest, force: bool) -> None:
    there = sorted(p.name for p in home.iterdir() if p.name not in _DOES_NOT_COUNT)
    known = stack_id(home)
    foreign = known != manifest.stack and (known is not None or (home / "nats" / "store").exists())
    if foreign:
        raise RestoreRefused(
            f"{home} belongs to another stack ({known or 'without an id'}) than the backup ({manifest.stack}): its broker holds other jobs. "
            "Set TRAINYARD_HOME to a new folder."
        )
    if there and not force:
        shown = ", ".join(there[:6]) + (", …" if len(there) > 6 else "")
        raise RestoreRefused(
            f"{home} is not empty ({shown}). With --force its databases are kept aside and replaced; the broker's store, "
            "the files of hosts and checkpoints stay, and what they know beyond the backup is taken back."
        )


def _settle_keys(home: Path, staging: Path, manifest: Manifest, keys: Keys) -> tuple[str, ...]:
    """Stage a master key file in which no key of the home is lost. Raises RestoreRefused for a key that nobody has."""
    staged = staging / MASTER_KEY
    lines: list[str] = []
    for source in (home / MASTER_KEY, keys.file, staged):
        if source is not None and (source.exists() or source == keys.file):
            lines += [s.strip() for s in source.read_text().splitlines() if s.strip()]
    lines = list(dict.fromkeys(lines))
    lacking = tuple(sorted(set(manifest.key_ids) - {key_id(line) for line in lines}))
    if lacking and not keys.without_secrets:
        raise RestoreRefused(
            f"The backup holds {manifest.secrets} encrypted secrets, and the master key that reads them ({', '.join(lacking)}) is neither in it "
            f"nor in {home / MASTER_KEY}. Name your copy with --master-key FILE, or go on with --without-secrets: those jobs then need them anew."
        )
    if lines:
        write_atomically(staged, "\n".join(lines) + "\n")
    return lacking


def _to_replace(home: Path, staging: Path, found: dict[str, Path]) -> list[str]:
    """Return the members to put in place; what is newer in the home stays."""
    chosen = []
    for name in dict.fromkeys([*found, MASTER_KEY]):
        staged, target = staging / name, home / name
        if not staged.exists():
            continue
        same = (
            target.exists() and target.read_bytes() == staged.read_bytes()
            if BY_NAME[name].kind == "file"
            else False
        )
        if same or (BY_NAME[name].newer_stays and target.exists()):
            staged.unlink()
        else:
            chosen.append(name)
    return chosen


def _check_databases(staging: Path) -> None:
    for member in (m for m in DATABASES if (staging / m.name).exists()):
        with contextlib.closing(sqlite3.connect(staging / member.name)) as database:
            try:
                answer = database.execute("PRAGMA quick_check(1)").fetchone()
            except sqlite3.DatabaseError as error:
                answer = (str(error),)
        if answer != ("ok",):
            raise archive.ArchiveRefused(f"{member.name}: the database is damaged ({answer[0]}).")


@contextlib.contextmanager
def _removed_on_error(staging: Path, home: Path | None) -> Iterator[None]:
    """Leave nothing behind when the restore does not come about."""
    try:
        yield
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        if home is not None:
            shutil.rmtree(home, ignore_errors=True)
        raise
