from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from services.gpu_agent import shim
from services.gpu_agent.control import ControlFollower
from services.gpu_agent.heartbeat import HeartbeatLoop
from services.gpu_agent.identity import AgentRefused, InstanceLock, ensure_host, host_id
from services.gpu_agent.inventory import HostFacts, Inventory
from services.gpu_agent.layout import HostFiles
from services.gpu_agent.processes import ProcessRef, holder_of, is_locked
from services.gpu_agent.settings import AgentSettings
from services.gpu_agent.zygote_client import import_key
from shared.clock import SystemClock
from shared.events.calls import ControlEntry, HeartbeatReply, HeldRun
from shared.runs import write_atomic_json


@pytest.fixture
def files(tmp_path: Path) -> HostFiles:
    return HostFiles(tmp_path / "agent", tmp_path / "agent" / "jobs", None)


def test_host_id_is_made_once(files: HostFiles) -> None:
    first = ensure_host(files)
    assert ensure_host(files) == first
    assert host_id(first).startswith("h")


def test_id_given_by_the_stack_is_kept(files: HostFiles) -> None:
    files.home.mkdir()
    files.host.write_text(json.dumps({"host_id": "hbox", "nats_url": "nats://x:1"}))
    assert ensure_host(files)["nats_url"] == "nats://x:1"


def test_damaged_id_is_not_replaced(files: HostFiles) -> None:
    files.home.mkdir()
    files.host.write_text("{")
    with pytest.raises(AgentRefused, match="join as a new host"):
        ensure_host(files)
    assert files.host.read_text() == "{"


def test_one_agent_a_home(files: HostFiles) -> None:
    with (
        InstanceLock(files),
        pytest.raises(AgentRefused, match="already runs"),
        InstanceLock(files),
    ):
        pass
    with InstanceLock(files):
        pass


def test_cpu_slots_and_their_holders(files: HostFiles) -> None:
    facts = HostFacts("box", 3, ("/data",), "0.1", {"torch": "2"})
    inventory = Inventory(files, facts)
    (lock,) = shim.take_locks([str(files.gpu_lock("slot-1"))], "job1 1\n")
    found = inventory.read()
    assert found.device == "cpu"
    assert [(g.uuid, g.held_by) for g in found.gpus] == [
        ("slot-0", None),
        ("slot-1", "job1"),
        ("slot-2", None),
    ]
    assert (found.label, found.shared_paths, found.memory_mib > 0) == ("box", ("/data",), True)
    assert found.disk_free_mib > 0
    os.close(lock)
    assert holder_of(files.gpu_lock("slot-1")) is None


def test_lock_held_is_seen_and_looking_does_not_hold_it(files: HostFiles, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    script = (
        "import fcntl,sys,time\nf=open(sys.argv[1],'w')\nfcntl.flock(f,2)\n"
        "print('held',flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert is_locked(path)
        with pytest.raises(shim.Locked):
            shim.take_locks([str(path)], "x")
        process.kill()
        process.wait()
        assert not is_locked(path)


def test_zombie_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        ref = ProcessRef(process.pid, shim.identity(process.pid)["start_time"])
        assert ref.is_alive()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{process.pid}").exists()
        assert not ref.is_alive()


def heartbeat(files: HostFiles) -> HeartbeatLoop:
    files.home.mkdir(parents=True, exist_ok=True)
    inventory = Inventory(files, HostFacts("box", 1, (), "0", {}))
    return HeartbeatLoop("box", "i", files, inventory, SystemClock(), 5.0, lambda: (), lambda: None)


def test_lease_counts_from_when_the_request_left(files: HostFiles) -> None:
    loop = heartbeat(files)
    loop.take(HeartbeatReply(lease_seconds=30, ctl_epoch="e"), sent=100.0)
    lease = json.loads(files.lease.read_text())
    assert (lease["renewed"], lease["deadline"]) == (100.0, pytest.approx(129.4))
    assert loop.accepts


@pytest.mark.parametrize("error", ["identity_in_use", "forgotten"])
def test_refused_host_takes_no_work_and_renews_nothing(files: HostFiles, error: str) -> None:
    loop = heartbeat(files)
    loop.take(HeartbeatReply(ok=False, error=error), sent=loop.clock.boot())
    assert not loop.accepts
    assert not files.lease.exists()
    loop.take(HeartbeatReply(), sent=loop.clock.boot())
    assert loop.accepts


def test_only_a_long_clash_of_identities_ends_the_agent(files: HostFiles) -> None:
    loop = heartbeat(files)
    loop.take(HeartbeatReply(ok=False, error="identity_in_use"), sent=loop.clock.boot())
    assert not loop.is_usurped
    loop.standing.refused_since = loop.clock.boot() - 91
    assert loop.is_usurped


def test_what_is_requeued_on_silence_begins_only_when_a_running_lease_names_it(
    files: HostFiles,
) -> None:
    loop = heartbeat(files)
    entry = ControlEntry(
        epoch="e", job="j", attempt=2, desired="run", disconnect_policy="stop_and_requeue"
    )
    kept = entry.model_copy(update={"disconnect_policy": "keep"})
    assert not loop.may_start(entry)
    assert loop.may_start(kept)
    for attempt, allowed in ((1, False), (2, True)):
        held = (HeldRun(job="j", attempt=attempt),)
        loop.take(HeartbeatReply(held=held), sent=loop.clock.boot())
        assert loop.may_start(entry) is allowed
    loop.take(HeartbeatReply(held=held), sent=loop.clock.boot() - 29.5)
    assert not loop.may_start(entry), "the lease is over"
    loop.take(HeartbeatReply(), sent=loop.clock.boot())
    assert loop.may_start(entry), "an older scheduler does not say"


def test_drained_host_takes_no_work(files: HostFiles) -> None:
    loop = heartbeat(files)
    loop.take(HeartbeatReply(drained=True), sent=1.0)
    assert not loop.accepts


async def test_entries_that_cannot_be_read_make_no_absence() -> None:
    follower = ControlFollower("box", lambda: None)
    good = ControlEntry(epoch="e", job="j", attempt=1, desired="run").model_dump_json().encode()
    follower.replace({"box.j": good, "box.epoch": b'{"epoch": "e"}'})
    assert (list(follower.entries), follower.epoch) == (["j"], "e")
    follower.replace({"box.j": good, "box.k": b"{}", "box.epoch": b'{"epoch": "e"}'})
    assert (list(follower.entries), follower.epoch) == (["j"], None)
    follower.replace({"box.other": good, "box.epoch": b"?"})
    assert (follower.entries, follower.epoch) == ({}, None)


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRAINYARD_HOME", str(tmp_path))
    monkeypatch.setenv("TRAINYARD_CHECKPOINT_DIR", str(tmp_path / "c"))
    embedded = AgentSettings().files
    assert embedded.home == tmp_path / "agents" / "local"
    assert embedded.checkpoints("j") == tmp_path / "c" / "j"
    monkeypatch.setenv("TRAINYARD_AGENT_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("TRAINYARD_AGENT_SHARED_PATHS", f"{tmp_path}:/data")
    remote = AgentSettings()
    assert remote.files.checkpoints("j") == tmp_path / "other" / "jobs" / "j" / "checkpoints"
    assert remote.shared_paths == (str(tmp_path), "/data")


def test_import_environment_decides_about_warm_starts() -> None:
    base = {"PATH": "/bin", "HF_HOME": "/a"}
    assert import_key(base) == import_key({**base, "PATH": "/usr/bin"})
    assert import_key(base) != import_key({**base, "HF_HOME": "/b"})
    assert import_key(base) != import_key({**base, "HF_HUB_OFFLINE": "1"})


def test_the_label_given_at_joining_is_shown_unless_the_setting_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRAINYARD_AGENT_LABEL", raising=False)
    settings = AgentSettings(home=tmp_path)
    assert settings.label == platform.node()
    settings.files.home.mkdir(parents=True)
    write_atomic_json(settings.files.host, {"host_id": "h1", "label": "box2"})
    assert settings.label == "box2"
    assert AgentSettings(home=tmp_path, agent_label="box3").label == "box3"
