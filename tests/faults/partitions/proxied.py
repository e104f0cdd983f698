"""A line through a stalling proxy: works everywhere."""

from __future__ import annotations

from urllib.parse import urlsplit

from tests.e2e.stack import Stack
from tests.faults.partitions.cuts import Way
from tests.faults.partitions.proxy import StallingProxy


class ProxiedLine:
    """From a host on this machine to the stack's own broker."""

    enter: tuple[str, ...] = ()

    def __init__(self, stack: Stack, broker: str) -> None:
        """`broker`: its url."""
        found = urlsplit(broker)
        assert found.hostname is not None
        assert found.port is not None
        self.proxy = StallingProxy(found.hostname, found.port).start()
        self.api_url = stack.client.url

    @property
    def broker_url(self) -> str:
        return f"nats://127.0.0.1:{self.proxy.port}"

    def cut(self, way: Way) -> None:
        self.proxy.cut(way)

    def heal(self) -> None:
        self.proxy.heal()

    def close(self) -> None:
        self.proxy.close()
