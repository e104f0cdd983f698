"""The embedded broker: finds the binary, writes its configuration, adds hosts while it runs, and probes it.

It does not supervise: whoever starts `command()` owns the process. A configuration that the broker itself does
not accept never replaces a good one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.bus.connection import Connection
from shared.bus.keys import broker_url, create_service_keys, hosts_locked, write_atomically
from shared.bus.permissions import SYSTEM, inbox
from shared.bus.port import BusConfig, BusError, BusUnavailable
from shared.bus.streams import DEFAULT_STORE_MIB
from shared.bus.users import (
    BrokerConfigInvalid,
    BrokerMissing,
    check_config,
    server_binary,
    users_config,
)

MAX_PAYLOAD = 1024 * 1024
STORE_MARGIN_MIB = 64


class EmbeddedBroker:
    """One nats-server whose files lie in `<home>/nats`, `<home>/run` and `<home>/logs`."""

    def __init__(
        self,
        home: Path,
        port: int = 0,
        *,
        store_mib: int = DEFAULT_STORE_MIB,
        binary: Path | None = None,
        listen: str = "127.0.0.1",
    ) -> None:
        """Do no I/O. Port 0: the one of the last start if it is free, else any free one."""
        self.home = home
        self.listen = listen
        self.port = port
        self.store_mib = store_mib
        self.binary = binary
        self.config_file = home / "nats" / "nats.conf"
        self.pid_file = home / "run" / "nats.pid"
        self.log_file = home / "logs" / "nats.log"

    @property
    def url(self) -> str:
        """Return where clients connect, once prepared."""
        return f"nats://127.0.0.1:{self.port}"

    def prepare(self) -> EmbeddedBroker:
        """Create keys and configuration, check them with the broker itself, write `<home>/run/nats.json`.

        Harmless to repeat. Raises BrokerMissing, BrokerConfigInvalid.
        """
        for name in ("nats", "run", "logs"):
            (self.home / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        create_service_keys(self.home)
        if self.port == 0:
            self.port = _free_port(_last_port(self.home))
        with hosts_locked(self.home) as hosts:
            self._install(hosts)
        write_atomically(
            self.home / "run" / "nats.json",
            json.dumps({"url": self.url, "port": self.port, "pid_file": str(self.pid_file)}),
        )
        return self

    def command(self) -> list[str]:
        """Return the argument vector of the broker process."""
        return [str(server_binary(self.binary)), "-c", str(self.config_file)]

    async def wait_ready(self, timeout: float = 10) -> None:
        """Wait until JetStream answers. Raises BusUnavailable after `timeout` seconds, with the log's last lines."""
        try:
            async with asyncio.timeout(timeout):
                while not await is_healthy(self.home, self.url):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise BusUnavailable(
                f"nats-server is not ready after {timeout:g} s:\n{self._log_tail()}"
            ) from None

    def _install(self, hosts: Mapping[str, str]) -> None:
        """Check the new files as a pair in a folder of their own, then put them in place."""
        texts = {"users.conf": users_config(self.home, hosts), "nats.conf": self._server_config()}
        with tempfile.TemporaryDirectory(dir=self.home / "nats", prefix=".check-") as folder:
            for name, text in texts.items():
                write_atomically(Path(folder) / name, text)
            check_config(server_binary(self.binary), Path(folder) / "nats.conf")
        for name, text in texts.items():
            write_atomically(self.home / "nats" / name, text)

    def _server_config(self) -> str:
        return f"""\
# Written by Trainyard at each start; changes are lost.
server_name: "trainyard"
listen: "{self.listen}:{self.port}"
max_payload: {MAX_PAYLOAD}
max_connections: 4096
ping_interval: "20s"
ping_max: 2
write_deadline: "10s"
pid_file: {_quoted(self.pid_file)}
log_file: {_quoted(self.log_file)}
logfile_size_limit: {16 * 1024 * 1024}
logfile_max_num: 3
jetstream {{
  store_dir: {_quoted(self.home / "nats" / "store")}
  sync_interval: always
  max_memory_store: {64 * 1024 * 1024}
  max_file_store: {(self.store_mib + STORE_MARGIN_MIB) * 1024 * 1024}
}}
include "users.conf"
"""

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-10:])
        return "(no log)"


def _quoted(path: Path) -> str:
    """Return `path` as a string of the broker's configuration format: JSON's, but for its \\u escapes."""
    return json.dumps(str(path), ensure_ascii=False)


async def reload_permissions(home: Path, url: str | None = None, timeout: float = 10) -> None:
    """Let the running broker read the users again; connections of the others stay.

    Raises BusUnavailable when it is not running, BrokerConfigInvalid when it refused (the old users stay).
    """
    connection = await _system(home, url or broker_url(home), timeout)
    try:
        answer = await connection.request(
            f"$SYS.REQ.SERVER.{connection.server_id}.RELOAD", b"", timeout
        )
    finally:
        await connection.close()
    error = json.loads(answer.data).get("error")
    if error:
        raise BrokerConfigInvalid(str(error.get("description", error)))


@dataclass(frozen=True, slots=True)
class BrokerHealth:
    """What the broker says about itself."""

    answered: bool
    trouble: str | None = None
    """The first thing that is wrong, in its own words, or None."""

    @property
    def is_ok(self) -> bool:
        """Tell whether it answered and found nothing wrong."""
        return self.answered and self.trouble is None


async def health(home: Path, url: str | None = None, timeout: float = 2) -> BrokerHealth:
    """Ask the broker how JetStream and every stream are. Never raises; nobody there is an answer too.

    A stream that once met a full disk is named here until the broker is started again.
    """
    try:
        connection = await _system(home, url or broker_url(home), timeout)
    except (BusError, OSError) as error:
        return BrokerHealth(answered=False, trouble=str(error))
    try:
        answer = await connection.request(
            f"$SYS.REQ.SERVER.{connection.server_id}.HEALTHZ", b"{}", timeout
        )
        data = json.loads(answer.data).get("data", {})
    except (BusError, ValueError) as error:
        return BrokerHealth(answered=False, trouble=str(error))
    finally:
        await connection.close()
    fine = data.get("status") == "ok"
    return BrokerHealth(True, None if fine else str(data.get("error") or data.get("status")))


async def is_healthy(home: Path, url: str | None = None, timeout: float = 2) -> bool:
    """Ask the broker whether JetStream and every stream are up; False also when nobody answers in `timeout` seconds."""
    return (await health(home, url, timeout)).is_ok


async def _system(home: Path, url: str, timeout: float) -> Connection:
    seed = (home / "keys" / f"{SYSTEM}.nk").read_text().strip()
    return await Connection.open(BusConfig(url, SYSTEM, seed, inbox(SYSTEM)), timeout)


def _last_port(home: Path) -> int:
    with contextlib.suppress(OSError, ValueError, KeyError):
        return int(json.loads((home / "run" / "nats.json").read_text())["port"])
    return 0


def _free_port(wanted: int) -> int:
    """Return `wanted` if it can be bound, else any free port."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise BusUnavailable("no free port")


__all__ = [
    "BrokerConfigInvalid",
    "BrokerHealth",
    "BrokerMissing",
    "EmbeddedBroker",
    "health",
    "is_healthy",
    "reload_permissions",
    "server_binary",
]
