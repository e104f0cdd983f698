"""Last words on a full disk: room set aside holds, log lines give way, and nothing else is touched."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.api.problems import known_error
from services.gpu_agent import shim
from services.gpu_agent.facts import FactLog, RunAccepted, RunExited
from services.gpu_agent.trainers.context import _Log
from shared.db import Database, DatabaseFull
from shared.disk.reserve import give_back, room_of, set_aside, write_in_room
from shared.log import SteadyStream
from shared.runs import write_atomic_json
from tests.faults.volumes import Volume, needs_root, small_volume


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with small_volume(tmp_path / "volume", 8) as found:
        yield found


@needs_root
def test_a_document_with_room_set_aside_is_written_on_a_full_disk(volume: Volume) -> None:
    kept, lost = volume.path / "result.json", volume.path / "other.json"
    set_aside(kept, 8192)
    volume.fill()
    with pytest.raises(OSError, match="No space left"):
        write_atomic_json(lost, {"a": 1})
    write_atomic_json(kept, {"text": "x" * 5000})
    assert json.loads(kept.read_bytes()) == {"text": "x" * 5000}
    assert sorted(p.name for p in volume.path.iterdir()) == [".ballast", "result.json"]


@needs_root
def test_the_shim_writes_its_record_on_a_full_disk(volume: Volume) -> None:
    path = volume.path / "exit.json"
    set_aside(path, 4096)
    volume.fill()
    shim.write_json(str(path), {"exit_code": 1})
    assert json.loads(path.read_bytes()) == {"exit_code": 1}
    assert not room_of(path).exists()


@needs_root
def test_the_last_fact_of_a_run_is_written_on_a_full_disk(volume: Volume) -> None:
    log = FactLog(volume.path / "facts.jsonl")
    log.append(RunAccepted(seq=0, t=1.0))
    volume.fill()
    log.append(RunExited(seq=0, t=2.0, outcome="failed", message_en="x" * 6000))
    again = FactLog(volume.path / "facts.jsonl")
    assert again.last_seq == 2
    assert again.is_closed


def test_too_much_for_the_room_is_refused_and_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    set_aside(path, 100)
    assert not write_in_room(path, b"x" * 101)
    assert not path.exists()
    assert write_in_room(path, b"x" * 100)
    assert path.read_bytes() == b"x" * 100
    assert not write_in_room(path, b"y")
    set_aside(path, 10)
    give_back(path, tmp_path / "never")
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


class Full(io.StringIO):
    """A stream whose disk is full while `full`."""

    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_a_service_goes_on_without_room_for_its_log() -> None:
    below = Full()
    stream = SteadyStream(below)
    stream.write("one\n")
    stream.write("two\n")
    below.full = False
    stream.write("three\n")
    stream.write("four\n")
    lost, *rest = below.getvalue().splitlines()
    assert json.loads(lost) == {"event": "log_lines_lost", "lines": 2}
    assert rest == ["three", "four"]


def test_a_trainer_goes_on_without_room_for_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    out, room = bytearray(), [10]

    def write(_: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = data[: room[0]]
        room[0] -= len(part)
        out.extend(part)
        return len(part)

    monkeypatch.setattr(os, "write", write)
    log = _Log()
    for line in (b"[INFO] one\n", b"[INFO] two\n"):
        log.write(line)
    room[0] = 1000
    log.write(b"[INFO] three\n")
    log.write(b"[INFO] four\n")
    assert out.decode().splitlines() == [
        "[INFO] one",
        "[WARNING] 2 lines of the log were lost: the disk was full",
        "[INFO] three",
        "[INFO] four",
    ]


@needs_root
async def test_a_full_database_names_path_need_and_have_and_takes_writes_again(
    volume: Volume,
) -> None:
    database = Database(f"sqlite:///{volume.path / 'x.db'}")
    try:
        await database.write(lambda s: s.connection().exec_driver_sql("CREATE TABLE t (x BLOB)"))
        volume.fill()
        full = None
        for _ in range(50):
            try:
                await database.write(_insert)
            except DatabaseFull as error:
                full = error
                break
        assert full is not None
        assert full.shortage is not None
        assert full.shortage.path == str(volume.path)
        assert full.shortage.have < 1 << 20
        assert await database.read(_count) >= 0
        volume.release()
        before = await database.read(_count)
        await database.write(_insert)
        assert await database.read(_count) == before + 1
    finally:
        database.close()


def _insert(session) -> None:  # type: ignore[no-untyped-def]
    session.connection().exec_driver_sql("INSERT INTO t VALUES (zeroblob(200000))")


def _count(session) -> int:  # type: ignore[no-untyped-def]
    return int(session.connection().exec_driver_sql("SELECT count(*) FROM t").scalar())


def test_a_file_that_finds_no_room_is_a_503_that_names_it(tmp_path: Path) -> None:
    told = known_error(OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x")))
    assert told is not None
    assert (told.status, told.code) == (503, "disk_full")
    for sentence in (told.detail_en, told.detail_zh):
        assert str(tmp_path / "x") in sentence
        assert "32.0 MiB" in sentence
    assert known_error(OSError(errno.EACCES, "Permission denied", "x")) is None
    assert known_error(TimeoutError()) is None


@needs_root
def test_a_stack_does_not_start_on_a_full_disk_and_says_so(volume: Volume) -> None:
    volume.fill()
    env = os.environ | {"TRAINYARD_HOME": str(volume.path), "TRAINYARD_API_PORT": "0"}
    command = [sys.executable, "-P", "-m", "trainyard.cli.main", "up"]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode not in (0, -9)
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert f"{volume.path} needs 32.0 MiB and has 0 bytes free" in " ".join(said.split())
