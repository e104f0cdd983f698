from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from services.gpu_agent.commands import READ_BYTES, Commands
from services.gpu_agent.layout import HostFiles
from shared.events.calls import HostCommand, HostReply


@pytest.fixture
def host(tmp_path: Path) -> HostFiles:
    files = HostFiles(tmp_path / "agent", tmp_path / "agent" / "jobs", tmp_path / "ckpt")
    files.job("job1").log.parent.mkdir(parents=True)
    files.job("job1").log.write_text("hello")
    (files.checkpoints("job1") / "checkpoint-1").mkdir(parents=True)
    (files.checkpoints("job1") / "checkpoint-1" / "a.bin").write_bytes(b"x" * 10)
    (files.checkpoints("job1") / ".tmp-checkpoint-2-aa").mkdir()
    (tmp_path / "secret").write_text("canary")
    return files


async def ask(
    host: HostFiles,
    verb: str,
    job: str | None = "job1",
    roots: tuple[Path, ...] | None = (),
    **args: object,
) -> HostReply:
    commands = Commands("box1", host, roots, host.home)
    body = HostCommand(job=job, args=args).model_dump_json().encode()
    return await commands.answer(f"cmd.box1.{verb}", body)


async def test_reads_a_window_of_the_log(host: HostFiles) -> None:
    reply = await ask(host, "read_file", path="logs/train.log", offset=1, length=3)
    assert reply.ok
    assert base64.b64decode(reply.result["data"]) == b"ell"
    assert (reply.result["size"], reply.result["eof"]) == (5, False)
    end = await ask(host, "read_file", path="logs/train.log", offset=3)
    assert end.result["eof"] is True


async def test_answers_fit_into_a_message(host: HostFiles) -> None:
    (host.checkpoints("job1") / "big").write_bytes(bytes(READ_BYTES * 2))
    reply = await ask(host, "read_file", path=str(host.checkpoints("job1") / "big"), length=10**9)
    assert len(base64.b64decode(reply.result["data"])) == READ_BYTES
    assert len(reply.model_dump_json()) < 512 * 1024


@pytest.mark.parametrize(
    "path", ["../../../secret", "/etc/passwd", "link", "../job2/logs/train.log"]
)
@pytest.mark.parametrize("verb", ["read_file", "list_files"])
async def test_nothing_outside_the_job(host: HostFiles, verb: str, path: str) -> None:
    (host.job("job1").root / "link").symlink_to("/etc")
    host.job("job2").log.parent.mkdir(parents=True)
    host.job("job2").log.write_text("of another")
    reply = await ask(host, verb, path=path)
    assert (reply.ok, reply.error) == (False, "path_forbidden")
    assert reply.result == {}


async def test_job_id_is_no_path(host: HostFiles) -> None:
    for job in ("..", "../..", "", "a/b"):
        assert not (await ask(host, "list_files", job=job)).ok


async def test_lists_what_is_complete(host: HostFiles) -> None:
    folder = str(host.checkpoints("job1"))
    reply = await ask(host, "list_files", path=folder)
    assert [(f["path"], f["size"]) for f in reply.result["files"]] == [("checkpoint-1/a.bin", 10)]
    top = await ask(host, "list_files", path=folder, recursive=False, folders=True)
    assert [(f["path"], f["is_dir"]) for f in top.result["files"]] == [("checkpoint-1", True)]


async def test_missing_file_and_pipe_are_told(host: HostFiles) -> None:
    assert (await ask(host, "read_file", path="logs/none")).error == "not_found"
    os.mkfifo(host.job("job1").root / "pipe")
    assert (await ask(host, "read_file", path="pipe")).error == "not_a_file"


async def test_unknown_verb(host: HostFiles) -> None:
    assert (await ask(host, "rm")).error == "unknown_verb"


async def test_checks_paths_within_the_roots(host: HostFiles, tmp_path: Path) -> None:
    wanted = [str(tmp_path / "secret"), str(tmp_path / "none"), "/etc/passwd"]
    reply = await ask(host, "check_paths", job=None, roots=(tmp_path,), paths=wanted)
    first, second, third = reply.result["paths"]
    assert (first["exists"], first["size"], first["code"]) == (True, 6, None)
    assert (second["exists"], second["code"]) == (False, "not_found")
    assert (third["exists"], third["code"]) == (False, "path_forbidden")


async def test_body_that_is_no_command_is_refused(host: HostFiles) -> None:
    commands = Commands("box1", host, None, host.home)
    with pytest.raises(ValueError, match="validation"):
        await commands.answer("cmd.box1.read_file", b"[]")
