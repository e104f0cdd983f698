"""A checkpoint folder as a tar stream in bounded memory, from this machine's disk or through its host's agent."""

from __future__ import annotations

import asyncio
import base64
import binascii
import stat
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from shared.bus import Bus
from shared.bus.port import BusError
from shared.errors import TrainyardError, unavailable
from shared.events import subjects
from shared.events.calls import HostCommand, HostReply

LOCAL_CHUNK = 1 << 20
REMOTE_CHUNK = 192 << 10
"""Bytes of one answer before base64, the most that an agent gives."""
FILES_AT_MOST = 2000
REMOTE_SECONDS = 20.0
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its path below the checkpoint folder and its size in bytes."""

    path: str
    size: int


class Source(Protocol):
    """Where the files come from."""

    async def entries(self) -> list[Entry]:
        """Return the files. Raises TrainyardError when the folder cannot be read."""
        ...

    def read(self, entry: Entry) -> AsyncIterator[bytes]:
        """Yield the bytes of one file; exactly `entry.size` of them, or an OSError."""
        ...


def readable_here(path: str, roots: tuple[Path, ...]) -> Path | None:
    """Return the folder when it is a checkpoint of this machine below one of our own roots.

    The path came from a host, so that it must not be able to name any other folder of ours.
    """
    try:
        real = Path(path).resolve()
        inside = any(real.is_relative_to(root.resolve()) for root in roots)
        named = real.name.startswith("checkpoint-")
        return real if inside and named and (real / MANIFEST).is_file() else None
    except OSError:
        return None


class LocalFolder:
    """A folder on this machine's disk."""

    def __init__(self, folder: Path) -> None:
        """Read from `folder`."""
        self._folder = folder

    async def entries(self) -> list[Entry]:
        """Return the regular files; links are left out."""
        return await asyncio.to_thread(self._entries)

    def _entries(self) -> list[Entry]:
        found = []
        for path in sorted(self._folder.rglob("*")):
            info = path.lstat()
            if stat.S_ISREG(info.st_mode):
                found.append(Entry(path.relative_to(self._folder).as_posix(), info.st_size))
        return found

    async def read(self, entry: Entry) -> AsyncIterator[bytes]:
        """Yield the file in pieces of LOCAL_CHUNK bytes."""
        file = await asyncio.to_thread((self._folder / entry.path).open, "rb")
        try:
            left = entry.size
            while left > 0:
                data = await asyncio.to_thread(file.read, min(left, LOCAL_CHUNK))
                if not data:
                    raise OSError(f"{entry.path} became shorter while it was read")
                left -= len(data)
                yield data
        finally:
            file.close()


class HostFolder:
    """A folder of another host, read through `cmd.<host>.…`."""

    def __init__(self, bus: Bus, host: str, job: str, folder: str) -> None:
        """Read from `folder` on `host`."""
        self._bus = bus
        self._host = host
        self._job = job
        self._folder = folder

    async def entries(self) -> list[Entry]:
        """Return the files that the host lists. Raises TrainyardError 503 when it does not answer."""
        result = await self._ask("list_files", {"path": self._folder})
        listed = result.get("files") or []
        found = [Entry(str(f["path"]), int(f["size"])) for f in listed[: FILES_AT_MOST + 1]]
        whole = len(found) <= FILES_AT_MOST and not result.get("truncated")
        if not whole or not all(_is_inside(e.path) for e in found):
            raise _unreadable(self._host, "its list of files is not a checkpoint's")
        return sorted(found, key=lambda e: e.path)

    async def read(self, entry: Entry) -> AsyncIterator[bytes]:
        """Yield the file in pieces of REMOTE_CHUNK bytes."""
        offset = 0
        while offset < entry.size:
            wanted = min(REMOTE_CHUNK, entry.size - offset)
            args = {"path": f"{self._folder}/{entry.path}", "offset": offset, "length": wanted}
            result = await self._ask("read_file", args)
            try:
                data = base64.b64decode(str(result.get("data", "")), validate=True)
            except binascii.Error as error:
                raise OSError(f"{entry.path}: {error}") from error
            if not data or len(data) > wanted:
                raise OSError(f"{entry.path} became shorter while it was read")
            offset += len(data)
            yield data

    async def _ask(self, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = await self._bus.request(
                subjects.command(self._host, verb),
                HostCommand(job=self._job, args=args),
                HostReply,
                timeout=REMOTE_SECONDS,
            )
        except BusError as error:
            raise _unreadable(self._host, str(error) or type(error).__name__) from error
        if not reply.ok:
            raise _unreadable(self._host, reply.message_en or reply.error or "refused")
        return reply.result


def tar_size(entries: list[Entry], folder: str) -> int:
    """Return the bytes of the archive, so that a client sees how much is to come."""
    body = sum(len(_header(e, folder)) + e.size + _padding(e.size) for e in entries)
    return body + 2 * tarfile.BLOCKSIZE


async def tar_stream(source: Source, entries: list[Entry], folder: str) -> AsyncIterator[bytes]:
    """Yield the archive; everything in it lies below `folder`."""
    for entry in entries:
        yield _header(entry, folder)
        async for data in source.read(entry):
            yield data
        if _padding(entry.size):
            yield b"\0" * _padding(entry.size)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _header(entry: Entry, folder: str) -> bytes:
    info = tarfile.TarInfo(f"{folder}/{entry.path}")
    info.size = entry.size
    info.mode = 0o644
    return info.tobuf(format=tarfile.PAX_FORMAT)


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts and not path.startswith("/") and "\0" not in path


def _unreadable(host: str, why: str) -> TrainyardError:
    return unavailable(
        "checkpoint_unreadable",
        f"The checkpoint lies on host {host}, which cannot be asked now: {why[:200]}. Bring the host online and try again.",
        f"检查点位于主机 {host}，目前无法读取：{why[:200]}。请让该主机上线后重试。",
        retry_after=10,
    )
