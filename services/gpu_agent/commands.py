"""Answers the api's questions about files of this host: read, list, check; only below what belongs to the job or is allowed."""

from __future__ import annotations

import asyncio
import base64
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from services.gpu_agent.layout import HostFiles
from shared.bus.jetstream import Bus, Served
from shared.events.calls import HostCommand, HostReply
from shared.preflight.finding import Finding
from shared.preflight.paths import resolve_allowed

READ_BYTES = 192 * 1024
LIST_ENTRIES = 2000
CHECK_PATHS = 100


class Commands:
    """`cmd.<host>.<verb>`; paths count from the job's folder, or are absolute."""

    def __init__(
        self, host: str, files: HostFiles, roots: tuple[Path, ...] | None, project_root: Path
    ) -> None:
        """Do no I/O."""
        self._host = host
        self._files = files
        self._roots = roots
        self._project_root = project_root
        self._verbs: dict[str, Callable[[HostCommand], HostReply]] = {
            "read_file": self._read_file,
            "list_files": self._list_files,
            "check_paths": self._check_paths,
        }

    async def serve(self, bus: Bus) -> Served:
        """Answer until the returned service is closed."""
        return await bus.serve(f"cmd.{self._host}.>", self.answer)

    async def answer(self, subject: str, data: bytes) -> HostReply:
        """Return the answer to one command. Raises ValueError for a body that is no command."""
        command = HostCommand.model_validate_json(data)
        verb = self._verbs.get(subject.rpartition(".")[2])
        if verb is None:
            return _failed(
                "unknown_verb", "This agent does not know that command.", "该 agent 不支持此命令。"
            )
        try:
            return await asyncio.to_thread(verb, command)
        except FileNotFoundError:
            return _failed("not_found", "There is no such file on the host.", "主机上没有该文件。")
        except (OSError, ValueError, KeyError, TypeError) as error:
            return _failed(
                "unreadable", f"The host cannot read it: {error}", f"主机无法读取：{error}"
            )

    def _read_file(self, command: HostCommand) -> HostReply:
        """args: path, offset (0), length (at most 192 KiB) → data (base64), size, offset, eof."""
        path = self._inside(command, str(command.args["path"]))
        if isinstance(path, HostReply):
            return path
        offset = int(command.args.get("offset", 0))
        length = min(max(int(command.args.get("length", READ_BYTES)), 0), READ_BYTES)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return _failed("not_a_file", "It is not a regular file.", "不是普通文件。")
            data = os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
        return HostReply(
            ok=True,
            result={
                "data": base64.b64encode(data).decode(),
                "size": status.st_size,
                "offset": offset,
                "eof": offset + len(data) >= status.st_size,
                "mtime": status.st_mtime,
            },
        )

    def _list_files(self, command: HostCommand) -> HostReply:
        """args: path ("."), recursive (true), folders (false) → files: [{path (from `path`), size, mtime, is_dir}], truncated."""
        folder = self._inside(command, str(command.args.get("path", ".")))
        if isinstance(folder, HostReply):
            return folder
        if not folder.is_dir():
            raise FileNotFoundError(folder)
        found: list[dict[str, Any]] = []
        truncated = False
        folders = bool(command.args.get("folders", False))
        for path in _walk(folder, recursive=bool(command.args.get("recursive", True))):
            status = path.lstat()
            if not (stat.S_ISREG(status.st_mode) or (folders and stat.S_ISDIR(status.st_mode))):
                continue
            if len(found) >= LIST_ENTRIES:
                truncated = True
                break
            found.append(
                {
                    "path": path.relative_to(folder).as_posix(),
                    "size": status.st_size,
                    "mtime": status.st_mtime,
                    "is_dir": stat.S_ISDIR(status.st_mode),
                }
            )
        result = {"root": str(folder), "files": found, "truncated": truncated}
        return HostReply(ok=True, result=result)

    def _check_paths(self, command: HostCommand) -> HostReply:
        """args: paths → paths: [{path, resolved, exists, is_dir, size, readable, code, message_en, message_zh}]."""
        wanted: Sequence[Any] = command.args.get("paths", [])
        return HostReply(
            ok=True, result={"paths": [self._check(str(p)) for p in wanted[:CHECK_PATHS]]}
        )

    def _check(self, path: str) -> dict[str, Any]:
        real = resolve_allowed(path, self._roots, base=self._project_root, field="path")
        if isinstance(real, Finding):
            return {
                "path": path,
                "exists": False,
                "code": real.code,
                "message_en": real.message_en,
                "message_zh": real.message_zh,
            }
        exists = real.exists()
        return {
            "path": path,
            "resolved": str(real),
            "exists": exists,
            "is_dir": real.is_dir(),
            "size": real.stat().st_size if exists else 0,
            "readable": os.access(real, os.R_OK),
            "code": None if exists else "not_found",
        }

    def _inside(self, command: HostCommand, path: str) -> Path | HostReply:
        """Return the real path if it lies in the job's folders or, without a job, in the allowed ones."""
        roots = self._roots
        base = self._project_root
        if command.job is not None:
            if "/" in command.job or command.job in ("", ".", ".."):
                raise ValueError("not a job id")
            base = self._files.job(command.job).root
            roots = (base, self._files.checkpoints(command.job))
        real = resolve_allowed(path, roots, base=base, field="path")
        if isinstance(real, Finding):
            return _failed(real.code, real.message_en, real.message_zh)
        return real


def _walk(folder: Path, *, recursive: bool) -> list[Path]:
    found: list[Path] = []
    todo = [folder]
    while todo and len(found) <= LIST_ENTRIES:
        here = todo.pop()
        for path in sorted(here.iterdir()):
            if path.name.startswith(".tmp-"):
                continue  # a checkpoint that is being written does not exist for anyone
            found.append(path)
            if recursive and path.is_dir() and not path.is_symlink():
                todo.append(path)
    return found


def _failed(error: str, en: str, zh: str) -> HostReply:
    return HostReply(ok=False, error=error, message_en=en, message_zh=zh)
