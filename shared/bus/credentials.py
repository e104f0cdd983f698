"""How each service and host gets onto the bus: its url, its key, and the keys of hosts that join."""

from __future__ import annotations

from typing import Literal

from shared.bus.keys import broker_url, check_host_id, create_host_key, create_service_keys
from shared.bus.permissions import inbox
from shared.bus.port import BusConfig
from shared.bus.users import add_host_key, remove_host_key
from shared.settings import Settings

Role = Literal["api", "scheduler", "reward", "agent", "up"]


def bus_config(settings: Settings, role: Role, host_id: str | None = None) -> BusConfig:
    """Return how `role` connects: url from the settings or `<home>/run/nats.json`, seed from `<home>/keys`.

    Raises BusUnavailable when the embedded broker was never prepared, FileNotFoundError without a key.
    """
    name = check_host_id(host_id or "") if role == "agent" else role
    seed_file = settings.home / "keys" / f"{name}.nk"
    if not seed_file.exists():
        raise FileNotFoundError(f"no key for {name}: {seed_file}")
    return BusConfig(
        url=settings.nats_url or broker_url(settings.home),
        name=name,
        seed=seed_file.read_text().strip(),
        inbox_prefix=inbox(name),
    )


__all__ = [
    "Role",
    "add_host_key",
    "bus_config",
    "create_host_key",
    "create_service_keys",
    "remove_host_key",
]
