"""A checkpoint as a tar stream: from this machine, from another host, and what may not be read."""

from __future__ import annotations

import base64
import io
import tarfile
from pathlib import Path

import pytest

from services.api.checkpoints.archive import readable_here
from shared.bus import Bus
from shared.events.calls import HostCommand, HostReply
from shared.events.run import RunCheckpoint
from shared.jobs.lifecycle import Change
from tests.conftest import BusFor
from tests.integration.api.conftest import MakeYard
from tests.integration.api.yard import ApiYard

pytestmark = [pytest.mark.integration]


def make_checkpoint(folder: Path) -> dict[str, bytes]:
    files = {
        "manifest.json": b"{}",
        "model.safetensors": bytes(range(256)) * 9000,
        "empty": b"",
        "sub/" + "long-name-" * 12 + ".json": b"x" * 513,
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files


async def announce(yard: ApiYard, path: Path | str, step: int = 20) -> str:
    uuid = (await yard.submit(name="näm/e"))["uuid"]
    await yard.say(Change.ASSIGNED, uuid, host="h1", attempt=1)
    await yard.tell(uuid, RunCheckpoint(seq=1, t=1.0, step=step, path=str(path)))
    return str(uuid)


def unpacked(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {}
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
        return found


async def test_a_local_checkpoint_is_streamed(yard: ApiYard) -> None:
    folder = yard.settings.checkpoint_dir / "job" / "checkpoint-20"
    files = make_checkpoint(folder)
    (folder / "link").symlink_to("/etc/passwd")
    uuid = await announce(yard, folder)
    reply = await yard.http.get(f"/api/v1/jobs/{uuid}/checkpoints/20/download")
    assert reply.status_code == 200
    assert int(reply.headers["content-length"]) == len(reply.content)
    assert reply.headers["content-disposition"].startswith('attachment; filename="n-m-e-checkpoint-20.tar"')  # fmt: skip
    assert unpacked(reply.content) == {f"checkpoint-20/{n}": d for n, d in files.items()}
    reply = await yard.http.get(f"/api/v1/jobs/{uuid}/checkpoints/21/download")
    assert (reply.status_code, reply.json()["code"]) == (404, "checkpoint_not_found")
    assert "20" in reply.json()["detail"]


async def test_a_host_cannot_make_the_api_read_other_folders(yard: ApiYard, home: Path) -> None:
    roots = (home / "checkpoints", home)
    good = home / "checkpoints" / "j" / "checkpoint-1"
    make_checkpoint(good)
    assert readable_here(str(good), roots) == good
    (home / "keys" / "checkpoint-9").mkdir(parents=True)
    (home / "checkpoints" / "checkpoint-2").symlink_to("/etc")
    outside = home.parent / "checkpoint-3"
    make_checkpoint(outside)
    for path in ("/etc", str(home / "keys"), str(home / "keys" / "checkpoint-9"), str(outside),
                 f"{home}/checkpoints/../../checkpoint-3", str(home / "checkpoints" / "checkpoint-2"), ""):  # fmt: skip
        assert readable_here(path, roots) is None, path
    uuid = await announce(yard, "/etc")
    reply = await yard.http.get(f"/api/v1/jobs/{uuid}/checkpoints/20/download")
    assert reply.status_code == 503


async def serve_files(agent: Bus, folder: Path) -> None:
    async def answer(subject: str, data: bytes) -> HostReply:
        command = HostCommand.model_validate_json(data)
        path = Path(str(command.args["path"]))
        assert path.is_relative_to(folder)
        if subject.endswith("list_files"):
            files = [p for p in path.rglob("*") if p.is_file()]
            listed = [
                {"path": p.relative_to(path).as_posix(), "size": p.stat().st_size} for p in files
            ]
            return HostReply(ok=True, result={"files": listed})
        start, length = int(command.args["offset"]), int(command.args["length"])
        piece = path.read_bytes()[start : start + length]
        return HostReply(ok=True, result={"data": base64.b64encode(piece).decode()})

    await agent.serve("cmd.h1.*", answer)


async def test_a_checkpoint_of_another_host_comes_through_its_agent(
    make_yard: MakeYard, streams: None, bus_for: BusFor, tmp_path: Path
) -> None:
    yard = make_yard()
    yard.link.attach(await bus_for("api"))
    folder = tmp_path / "remote" / "checkpoint-20"
    files = make_checkpoint(folder)
    uuid = await announce(yard, folder)
    reply = await yard.http.get(f"/api/v1/jobs/{uuid}/checkpoints/20/download")
    assert (reply.status_code, reply.json()["code"]) == (503, "checkpoint_unreadable")
    await serve_files(await bus_for("agent", "h1"), folder)
    reply = await yard.http.get(f"/api/v1/jobs/{uuid}/checkpoints/20/download")
    assert reply.status_code == 200, reply.text
    assert unpacked(reply.content) == {f"checkpoint-20/{n}": d for n, d in files.items()}
