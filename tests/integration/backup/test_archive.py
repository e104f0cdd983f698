"""One file out, one file in: complete or not at all, private, and every refusal names what is wrong."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import shutil
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.keyring import Keyring
from shared.restored import frame_base
from shared.settings import Settings
from tests.integration.backup.conftest import NOW, MakeHome
from trainyard.backup import restore as restoring
from trainyard.backup import swap
from trainyard.backup.archive import ArchiveRefused
from trainyard.backup.members import DATABASES, MASTER_KEY
from trainyard.backup.restore import Keys, RestoreRefused, restore
from trainyard.backup.save import BackupRefused, last, save
from trainyard.backup.stack import StackRuns

pytestmark = pytest.mark.integration


def sql(path: Path, query: str, *values: Any) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = database.execute(query, values).fetchall()
        database.commit()
    return rows


def a_secret(settings: Settings) -> None:
    ring = Keyring.load(settings.home / MASTER_KEY)
    key, text = ring.encrypt("j1", "HF_TOKEN", "hunter2")
    sql(
        settings.home / "api" / "main.db",
        "INSERT INTO job_secret VALUES ('j1', 'HF_TOKEN', ?, ?, '', '2026-01-01')", key, text,
    )  # fmt: skip


def put_back(settings: Settings, path: Path, **more: Any) -> restoring.Restored:
    options = {"force": False, "keys": Keys(), "now": NOW} | more
    return restore(settings, path, **options)


def test_what_was_saved_comes_back_marked_and_private(make_home: MakeHome, tmp_path: Path) -> None:
    settings = make_home("home")
    a_secret(settings)
    sql(settings.home / "api" / "telemetry.db",
        "INSERT INTO job_live (job, frame_seq, job_n, deleted, latest, latest_attempt, tail_lines, tail_points)"
        " VALUES ('j1', 100, 1, 0, '{}', 1, 0, 0)")  # fmt: skip
    sql(settings.home / "reward" / "reward.db", "INSERT INTO ledger VALUES ('old name', 7)")
    made = save(settings, tmp_path / "b.tar", with_master_key=True, now=NOW)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert last(settings.home) == (NOW, str(made.path))
    with tarfile.open(made.path) as tar:
        assert tar.getnames()[0] == "manifest.json"
        assert not [n for n in tar.getnames() if n.endswith(".nk") or "store" in n]
    fresh = Settings(home=tmp_path / "fresh", checkpoint_dir=settings.checkpoint_dir)
    done = put_back(fresh, made.path)
    assert (done.aside, done.keeps_bus, done.unreadable) == (None, False, ())
    home = fresh.home
    assert sorted(p.name for p in home.iterdir()) == [
        "agents", "api", "keys", "nats", "reward", "run", "scheduler.db", "stack.id",
    ]  # fmt: skip
    assert (home / "stack.id").read_text() == (settings.home / "stack.id").read_text()
    for name in (*(m.name for m in DATABASES), MASTER_KEY):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600, name
    (mine,) = sql(
        home / "scheduler.db", "SELECT epoch, last_seq FROM positions WHERE name = 'restored'"
    )
    (theirs,) = sql(
        home / "api" / "main.db",
        "SELECT epoch, last_seq FROM projection_position WHERE stream = 'restored'",
    )
    assert mine == theirs
    assert mine[1] == 0
    (ledger,) = sql(home / "reward" / "reward.db", "SELECT source, last_seq FROM ledger")
    assert ledger == (mine[0], 7), "numbers go back: under the old name they were counted already"
    base = frame_base(NOW.timestamp())
    assert sql(home / "api" / "telemetry.db", "SELECT frame_seq FROM job_live") == [(base,)]
    assert sql(home / "api" / "telemetry.db", "SELECT seq, type FROM record") == [(base, "gap")]
    (row,) = sql(home / "api" / "main.db", "SELECT key_id, ciphertext FROM job_secret")
    ring = Keyring.load(home / MASTER_KEY)
    assert ring.decrypt(row[0], row[1], "j1", "HF_TOKEN") == "hunter2"


def test_a_home_in_use_is_kept_aside_whole_and_what_is_newer_stays(
    make_home: MakeHome, tmp_path: Path
) -> None:
    settings = make_home("home")
    home = settings.home
    made = save(settings, tmp_path / "b.tar", with_master_key=False, now=NOW)
    (home / "nats" / "store").mkdir()
    (home / "nats" / "hosts.json").write_text('{"h1": "U1", "h2": "U2"}')
    (home / "api" / "main.db-wal").write_bytes(b"old")
    key = (home / MASTER_KEY).read_bytes()
    with pytest.raises(RestoreRefused, match=r"not empty.*--force"):
        put_back(settings, made.path)
    done = put_back(settings, made.path, force=True)
    assert done.aside is not None
    assert done.keeps_bus
    kept = {str(p.relative_to(done.aside)) for p in done.aside.rglob("*") if p.is_file()}
    assert {m.name for m in DATABASES} < kept
    assert (done.aside / "api" / "main.db-wal").read_bytes() == b"old"
    assert not {"keys/master.key", "nats/hosts.json", "agents/local/host.json"} & kept
    assert (home / MASTER_KEY).read_bytes() == key
    assert "h2" in (home / "nats" / "hosts.json").read_text()
    assert not (home / "api" / "main.db-wal").exists()


def test_a_running_stack_is_named_and_nothing_is_touched(
    make_home: MakeHome, tmp_path: Path
) -> None:
    settings = make_home("home")
    made = save(settings, tmp_path / "b.tar", with_master_key=False, now=NOW)
    run = settings.home / "run"
    run.mkdir(exist_ok=True)
    (run / "stack.json").write_text(json.dumps({"pid": 1, "url": ""}))
    with pytest.raises(StackRuns, match=r"trainyard up \(pid 1\).*kill -TERM 1"):
        put_back(settings, made.path, force=True)
    (run / "stack.json").unlink()
    with (run / "up.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StackRuns):
            put_back(settings, made.path, force=True)
    assert not list(settings.home.glob("before-restore-*"))


def test_secrets_without_their_key_need_a_decision(make_home: MakeHome, tmp_path: Path) -> None:
    settings = make_home("home")
    a_secret(settings)
    made = save(settings, tmp_path / "b.tar", with_master_key=False, now=NOW)
    key = settings.home / MASTER_KEY
    assert key.read_bytes().strip() not in made.path.read_bytes()
    fresh = Settings(home=tmp_path / "fresh")
    with pytest.raises(RestoreRefused, match=r"1 encrypted secrets.*--master-key"):
        put_back(fresh, made.path)
    assert not fresh.home.exists()
    assert put_back(fresh, made.path, keys=Keys(file=key)).unreadable == ()
    assert (fresh.home / MASTER_KEY).read_bytes() == key.read_bytes()
    other = Settings(home=tmp_path / "other")
    assert len(put_back(other, made.path, keys=Keys(without_secrets=True)).unreadable) == 1


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Return a copy of an archive in which each member went through `change`."""
    target = path.with_name("changed.tar")
    with tarfile.open(path) as old, tarfile.open(target, "w") as new:
        for info in old.getmembers():
            source = old.extractfile(info)
            assert source is not None
            body = change(info.name, source.read())
            if body is not None:
                info.size = len(body)
                new.addfile(info, io.BytesIO(body))
    return target


def manifest(**changes: Any) -> Callable[[str, bytes], bytes | None]:
    def change(name: str, body: bytes) -> bytes:
        if name != "manifest.json":
            return body
        return json.dumps(json.loads(body) | changes).encode()

    return change


def newer_schema(name: str, body: bytes) -> bytes:
    if name != "manifest.json":
        return body
    document = json.loads(body)
    for entry in document["members"]:
        if entry["name"] == "scheduler.db":
            entry["revision"] = "0999"
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (manifest(format=99), "manifest.json: .*newer version"),
        (manifest(product="other"), "no backup of Trainyard"),
        (manifest(members=[]), "scheduler.db: the backup does not hold it"),
        (manifest(made_at="yesterday"), "manifest.json of .* is damaged"),
        (newer_schema, "scheduler.db: its schema .*0999.* is newer"),
        (lambda n, b: b if n != "api/main.db" else b[:-1] + b"x", "api/main.db: it is damaged"),
        (lambda n, b: b if n != "api/main.db" else None, "api/main.db: it is missing"),
        (lambda n, b: b if n != "api/main.db" else b[:-7], "api/main.db: it is damaged"),
    ],
)
def test_a_file_that_is_not_right_is_refused_by_the_name_of_the_member(
    make_home: MakeHome, tmp_path: Path, change: Any, sentence: str
) -> None:
    settings = make_home("home")
    made = save(settings, tmp_path / "b.tar", with_master_key=False, now=NOW)
    fresh = Settings(home=tmp_path / "fresh")
    with pytest.raises(ArchiveRefused, match=sentence):
        put_back(fresh, rewritten(made.path, change))
    assert not fresh.home.exists()


def test_what_is_no_archive_or_cut_short_is_refused(make_home: MakeHome, tmp_path: Path) -> None:
    settings = make_home("home")
    made = save(settings, tmp_path / "b.tar", with_master_key=False, now=NOW)
    body = made.path.read_bytes()
    fresh = Settings(home=tmp_path / "fresh")
    for number, wrong in enumerate(
        (b"", b"hello", body[:300], body[:20_000], body[: len(body) // 2])
    ):
        path = tmp_path / f"wrong{number}.tar"
        path.write_bytes(wrong)
        with pytest.raises(ArchiveRefused):
            put_back(fresh, path)
        assert not fresh.home.exists()


def test_a_backup_of_another_stack_is_refused(make_home: MakeHome, tmp_path: Path) -> None:
    made = save(make_home("one"), tmp_path / "b.tar", with_master_key=False, now=NOW)
    with pytest.raises(RestoreRefused, match="another stack"):
        put_back(make_home("two"), made.path, force=True)


def test_no_file_is_overwritten_and_no_home_without_a_stack_is_saved(
    make_home: MakeHome, tmp_path: Path
) -> None:
    settings = make_home("home")
    save(settings, tmp_path / "b.tar", with_master_key=False, now=NOW)
    with pytest.raises(BackupRefused, match="is there already"):
        save(settings, tmp_path / "b.tar", with_master_key=False, now=NOW)
    with pytest.raises(BackupRefused, match="no stack ever ran"):
        save(Settings(home=tmp_path), tmp_path / "c.tar", with_master_key=False, now=NOW)
    with pytest.raises(BackupRefused, match="pg_dump"):
        save(
            Settings(home=settings.home, database_url="postgresql+psycopg://x/y"),
            tmp_path / "c.tar", with_master_key=False, now=NOW,
        )  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.tar", "home"]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("survived", range(9))
def test_killed_anywhere_between_the_renames_the_next_start_has_all_or_nothing(
    make_home: MakeHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    settings = make_home("home")
    home = settings.home
    made = save(settings, tmp_path / "b.tar", with_master_key=False, now=NOW)
    old = {m.name: (home / m.name).read_bytes() for m in DATABASES}
    real, left = Path.replace, survived

    def replace(self: Path, target: Path) -> Path:
        nonlocal left
        # The journal's own rename comes first, and counts too.
        if left == 0:
            raise Killed
        left -= 1
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            put_back(settings, made.path, force=True)
    begun = swap.pending(home) is not None
    assert (swap.finish(home) is not None) == begun
    found = {m.name: (home / m.name).read_bytes() for m in DATABASES}
    if begun:
        assert all(found[name] != old[name] for name in old)
        (aside,) = home.glob("before-restore-*")
        assert {m.name: (aside / m.name).read_bytes() for m in DATABASES} == old
    else:
        assert found == old
    assert swap.finish(home) is None
