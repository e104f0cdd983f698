"""Key files: seeds in `<home>/keys`, public keys of hosts in `<home>/nats/hosts.json`."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import nkeys

from shared.bus.permissions import SERVICES, SYSTEM
from shared.bus.port import BusUnavailable

_HOST = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_PUBLIC = re.compile(r"U[A-Z2-7]{55}\Z")


def check_host_id(host_id: str) -> str:
    """Return `host_id` when it is one safe subject token. Raises ValueError."""
    if not _HOST.match(host_id) or host_id in {*SERVICES, SYSTEM, "agent"}:
        raise ValueError(f"not a host id: {host_id!r}")
    return host_id


def check_public_key(public_key: str) -> str:
    """Return `public_key` when it is a user's nkey with the right checksum. Raises ValueError."""
    if _PUBLIC.match(public_key):
        raw = base64.b32decode(public_key)
        if int.from_bytes(raw[-2:], "little") == nkeys.crc16(bytearray(raw[:-2])):
            return public_key
    raise ValueError("not the public nkey of a user")


def new_seed() -> str:
    """Return a new user seed (`SU…`)."""
    return bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)).decode()


def public_key_of(seed: str) -> str:
    """Return the public key (`U…`) of a seed."""
    pair = nkeys.from_seed(bytearray(seed.strip().encode()))
    try:
        return bytes(pair.public_key).decode()
    finally:
        pair.wipe()


def create_key(home: Path, name: str) -> str:
    """Create `<home>/keys/<name>.nk` (mode 0600) unless it is there; return the public key."""
    path = home / "keys" / f"{name}.nk"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}.new")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(new_seed() + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: of two that create it at once, the first wins for both.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(part)
        part.unlink()
    return public_key_of(path.read_text())


def create_service_keys(home: Path) -> dict[str, str]:
    """Create the keys of all services and of the system account; return the public keys by name."""
    return {name: create_key(home, name) for name in (*SERVICES, SYSTEM)}


def create_host_key(home: Path, host_id: str) -> str:
    """Create the key of a host in this home (the host's own half of joining); return the public key."""
    return create_key(home, check_host_id(host_id))


def host_keys(home: Path) -> dict[str, str]:
    """Return the public keys of all hosts that may connect."""
    path = _hosts_file(home)
    if not path.exists():
        return {}
    keys: dict[str, str] = json.loads(path.read_text())
    return keys


def broker_url(home: Path) -> str:
    """Return the url of the embedded broker of `home`. Raises BusUnavailable before its first start."""
    try:
        url: str = json.loads((home / "run" / "nats.json").read_text())["url"]
    except (OSError, ValueError, KeyError) as error:
        raise BusUnavailable(f"no broker was started in {home}") from error
    return url


@contextlib.contextmanager
def hosts_locked(home: Path) -> Iterator[dict[str, str]]:
    """Hold the list of hosts for a change; the changed dict is saved when the block ends well."""
    directory = home / "nats"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / "hosts.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = host_keys(home)
        yield keys
        write_atomically(_hosts_file(home), json.dumps(keys, indent=1, sort_keys=True))


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by a synced file of mode 0600."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{os.getpid()}.new")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _hosts_file(home: Path) -> Path:
    return home / "nats" / "hosts.json"
