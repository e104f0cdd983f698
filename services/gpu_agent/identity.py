"""Who this host is: an id made once, kept in `host.json`, and a lock that keeps a second agent away."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import IO, Any

from services.gpu_agent.layout import HostFiles
from shared.ids import HostId, new_host_id
from shared.runs import write_atomic_json


class AgentRefused(RuntimeError):
    """The agent cannot run here; the sentence says why and what to do."""


class InstanceLock:
    """Held for the life of the agent."""

    def __init__(self, files: HostFiles) -> None:
        """Do no I/O."""
        self._files = files
        self._file: IO[str] | None = None

    def __enter__(self) -> None:
        """Take the lock. Raises AgentRefused when another agent has it."""
        self._files.home.mkdir(parents=True, exist_ok=True)
        self._file = self._files.instance_lock.open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise AgentRefused(
                f"An agent already runs with {self._files.home}. Stop that one first, or set TRAINYARD_AGENT_HOME to another folder."
            ) from None

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        if self._file is not None:
            self._file.close()


def read_host(path: Path) -> dict[str, Any]:
    """Return `host.json`: `host_id`, and after joining a stack `nats_url` and `api`; empty before the first start.

    Raises AgentRefused when the file is damaged: a new id would orphan the jobs of this host.
    """
    try:
        document = json.loads(path.read_bytes())
        str(document["host_id"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AgentRefused(
            f"{path} cannot be read ({error}). Restore it, or remove it to join as a new host."
        ) from None
    return dict(document)


def ensure_host(files: HostFiles) -> dict[str, Any]:
    """Return `host.json`, written with a new id if it was not there. Raises AgentRefused, OSError."""
    document = read_host(files.host)
    if document:
        return document
    files.home.mkdir(parents=True, exist_ok=True)
    document = {"host_id": str(new_host_id())}
    write_atomic_json(files.host, document)
    return document


def host_id(document: dict[str, Any]) -> HostId:
    """Return the id."""
    return HostId(str(document["host_id"]))
