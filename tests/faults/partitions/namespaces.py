"""Network namespaces: one for the stack, one for each host, and a router between the two whose routes decide what passes.

Needs root. Only these namespaces get links and addresses; the machine's own network is not touched. `laid_out` removes them, also after a
failure, and before it begins those of a test process that was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.partitions.cuts import Way

PREFIX = "trainyard"
_CLONE_NEWNET = 0x40000000
BROKER_PORT, API_PORT = 4222, 8000


def why_not() -> str | None:
    """Return why this machine lets nobody make namespaces here, or None where it does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"{PREFIX}-{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "one", "type", "veth", "peer", "name", "two")
        finally:
            _ip("netns", "del", name)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        return f"network namespaces cannot be made here: {detail.strip()}"
    return None


@dataclass(frozen=True)
class Wire:
    """The way from one host through its router to the stack."""

    number: int
    stack: str
    router: str
    host: str

    @property
    def stack_address(self) -> str:
        """The stack's address on this wire."""
        return f"10.203.{2 * self.number}.1"

    @property
    def host_address(self) -> str:
        return f"10.203.{2 * self.number + 1}.2"

    @property
    def broker_url(self) -> str:
        return f"nats://{self.stack_address}:{BROKER_PORT}"

    @property
    def api_url(self) -> str:
        return f"http://{self.stack_address}:{API_PORT}"

    @property
    def enter(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.host)

    def cut(self, way: Way) -> None:
        """Let the router swallow what goes one way, or take its link to the host down."""
        if way is Way.BOTH:
            _ip("-n", self.router, "link", "set", "to-host", "down")
        else:
            target = self.stack_address if way is Way.TO_BROKER else self.host_address
            _ip("-n", self.router, "route", "add", "blackhole", f"{target}/32")

    def heal(self) -> None:
        """Undo every cut."""
        for target in (self.stack_address, self.host_address):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("-n", self.router, "route", "del", "blackhole", f"{target}/32")
        _ip("-n", self.router, "link", "set", "to-host", "up")

    def close(self) -> None:
        """Leave that to `laid_out`: agents may still be inside."""

    def lay(self) -> None:
        """Make router and host, their cables and routes."""
        for name in (self.router, self.host):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        near, far = f"10.203.{2 * self.number}", f"10.203.{2 * self.number + 1}"
        self._join(self.stack, f"to-host{self.number}", f"{near}.1", "to-stack", f"{near}.2")
        self._join(self.host, "to-stack", f"{far}.2", "to-host", f"{far}.1")
        _ip("-n", self.stack, "route", "add", f"{far}.0/24", "via", f"{near}.2")
        _ip("-n", self.host, "route", "add", "default", "via", f"{far}.1")
        forward = "net.ipv4.ip_forward=1"
        _run("ip", "netns", "exec", self.router, "sysctl", "-qw", forward)

    def _join(self, end: str, name: str, address: str, port: str, gateway: str) -> None:
        """Lay a cable from a namespace to the router, with an address at each end."""
        peer = ("peer", "name", name, "netns", end)
        _ip("-n", self.router, "link", "add", port, "type", "veth", *peer)
        for space, device, own in ((self.router, port, gateway), (end, name, address)):
            _ip("-n", space, "addr", "add", f"{own}/24", "dev", device)
            _ip("-n", space, "link", "set", device, "up")


@dataclass(frozen=True)
class Inside:
    """A host in the stack's own namespace: nothing is between them."""

    broker_url: str = f"nats://127.0.0.1:{BROKER_PORT}"
    api_url: str = f"http://127.0.0.1:{API_PORT}"
    enter: tuple[str, ...] = ()

    def cut(self, way: Way) -> None:
        raise AssertionError(f"this host cannot be cut off {way}")

    def heal(self) -> None:
        """Nothing to undo."""

    def close(self) -> None:
        """Nothing to remove."""


@contextlib.contextmanager
def laid_out(hosts: int) -> Iterator[tuple[Wire, ...]]:
    """Make the stack's namespace and a wire to each host."""
    _remove_forgotten()
    mark = f"{PREFIX}-{os.getpid()}"
    wires = tuple(
        Wire(n, f"{mark}-stack", f"{mark}-router{n}", f"{mark}-host{n}") for n in range(hosts)
    )
    try:
        _ip("netns", "add", f"{mark}-stack")
        _ip("-n", f"{mark}-stack", "link", "set", "lo", "up")
        for wire in wires:
            wire.lay()
        yield wires
    finally:
        for path in Path("/run/netns").glob(f"{mark}-*"):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", path.name)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Let this thread, and every thread and process it starts, use the network of a namespace."""
    before = Path("/proc/thread-self/ns/net")
    with before.open("rb") as home, Path(f"/run/netns/{name}").open("rb") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _remove_forgotten() -> None:
    """Remove namespaces of test processes that are gone."""
    for path in Path("/run/netns").glob(f"{PREFIX}-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", path.name)


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
