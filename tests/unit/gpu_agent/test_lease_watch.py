"""The shim's watch over the lease, on a clock and files of the test's own."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from services.gpu_agent import shim

TRAINER = 4711
LAUNCH = {"policy": "stop_and_requeue", "lease": "lease.json", "stop_after": 100.0, "grace": 30.0}


class Host:
    """What the watch sees and does."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.time = 1000.0
        self.lease: dict[str, Any] | None = None
        self.sent: list[int] = []
        patch.setattr(shim, "now", lambda: self.time)
        patch.setattr(shim, "boot_id", lambda: "boot")
        patch.setattr(shim, "read_json", lambda _: self.lease)
        patch.setattr(shim, "write_json", lambda *_: None)
        patch.setattr(shim.os, "kill", lambda pid, number: self.sent.append(number))

    def renew(self) -> None:
        self.lease = {"renewed": self.time, "boot_id": "boot"}

    def watch(self, **fields: Any) -> shim.LeaseWatch:
        return shim.LeaseWatch("attempt", TRAINER, {**LAUNCH, **fields})

    def look(self, watch: shim.LeaseWatch, after: float) -> list[int]:
        self.time += after
        self.sent = []
        watch.look()
        return self.sent


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_a_renewed_lease_keeps_the_trainer(host: Host) -> None:
    watch = host.watch()
    for _ in range(10):
        host.renew()
        assert host.look(watch, 60.0) == []


def test_sigterm_at_the_deadline_and_sigkill_after_the_grace(host: Host) -> None:
    host.renew()
    watch = host.watch()
    assert host.look(watch, 97.9) == []
    assert host.look(watch, 0.2) == [signal.SIGTERM]
    assert host.look(watch, 29.0) == []
    assert host.look(watch, 2.0) == [signal.SIGKILL]


def test_a_start_renews_nothing(host: Host) -> None:
    host.renew()
    host.time += 90.0
    watch = host.watch()
    assert host.look(watch, 9.0) == [signal.SIGTERM]


def test_a_host_frozen_while_it_starts_counts_from_the_lease_of_the_start(host: Host) -> None:
    host.renew()
    leased = host.lease
    host.time += 500.0
    host.renew()
    watch = host.watch(leased=leased)
    assert host.look(watch, 0.1) == [signal.SIGTERM, signal.SIGKILL]


def test_nothing_begins_under_a_lease_that_is_long_over(host: Host) -> None:
    host.renew()
    launch = {**LAUNCH, "leased": host.lease}
    host.time += 97.9
    assert not shim.is_overdue(launch)
    host.time += 0.2
    assert shim.is_overdue(launch)
    assert not shim.is_overdue({**launch, "policy": "keep"})
    assert not shim.is_overdue({**launch, "leased": None})


def test_a_host_frozen_beyond_the_grace_kills_at_once_although_its_lease_is_renewed(
    host: Host,
) -> None:
    host.renew()
    watch = host.watch()
    assert host.look(watch, 10.0) == []
    host.time += 500.0
    host.renew()
    assert host.look(watch, 0.1) == [signal.SIGTERM, signal.SIGKILL]


def test_a_lease_of_another_boot_does_not_count(host: Host) -> None:
    watch = host.watch()
    host.lease = {"renewed": 5000.0, "boot_id": "another"}
    assert host.look(watch, 99.0) == [signal.SIGTERM]


def test_with_keep_nothing_is_ever_stopped(host: Host) -> None:
    watch = host.watch(policy="keep")
    assert host.look(watch, 1e6) == []
