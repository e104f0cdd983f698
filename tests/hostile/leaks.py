"""Where a secret may have got to: a search of everything that a stack writes, shows and runs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import psutil

ENVIRONMENT = "environment of"
COMMAND = "command of"


def forms(secret: str) -> list[bytes]:
    """Return a secret as it is and as it may be written: JSON, URL, base64 at any offset, hex."""
    plain = secret.encode()
    found = {plain, json.dumps(secret)[1:-1].encode(), quote(secret, safe="").encode()}
    found |= {plain.hex().encode(), secret.encode("utf-16-le")}
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + plain)
        # The first and last group also hold the neighbours' bits.
        found.add(coded[4:-4] if offset else coded[:-4])
    return sorted(found)


def in_bytes(data: bytes, secrets: Iterable[str]) -> list[str]:
    """Return the secrets that stand in some bytes."""
    return [secret for secret in secrets if any(form in data for form in forms(secret))]


def in_files(folder: Path, secrets: Iterable[str]) -> Iterator[str]:
    """Yield `file: secret` for every file below a folder."""
    wanted = list(secrets)
    for path in folder.rglob("*"):
        try:
            data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        except FileNotFoundError:  # a checkpoint that was replaced, a log that was rotated
            continue
        for secret in in_bytes(data, wanted):
            yield f"{path.relative_to(folder)}: {secret}"


def in_processes(root: int, secrets: Iterable[str]) -> Iterator[str]:
    """Yield where command lines and environments of a process and all below it hold a secret."""
    wanted = list(secrets)
    mine = psutil.Process(root)
    for process in [mine, *mine.children(recursive=True)]:
        folder = Path("/proc") / str(process.pid)
        try:
            command, env = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        name = command.replace(b"\0", b" ").decode(errors="replace")
        for kind, data in ((COMMAND, command), (ENVIRONMENT, env)):
            for secret in in_bytes(data, wanted):
                yield f"{kind} {name}: {secret}"
