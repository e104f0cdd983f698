"""One run from desired state to its last fact, and every way to end it early."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from services.gpu_agent import shim
from services.gpu_agent.processes import ProcessRef, RunProcesses, family, is_locked
from services.gpu_agent.settings import AgentSettings
from shared.jobs.reasons import Reason
from shared.runs import RunSpec
from tests.conftest import PATIENCE, eventually
from tests.hostile.leaks import in_files
from tests.integration.gpu_agent.conftest import LocalAgent
from tests.integration.gpu_agent.control_plane import ControlPlane

pytestmark = pytest.mark.integration
SLOW = {"steps": 100_000, "step_seconds": 0.02}


async def test_run_completes_and_everything_arrives_once(
    local_agent: LocalAgent, plane: ControlPlane
) -> None:
    agent = await local_agent.start()
    await plane.want(plane.entry("job1"))
    exited = await plane.wait_exited("job1")
    assert exited.outcome == "completed"
    assert plane.steps("job1") == list(range(1, 21))
    facts = plane.facts("job1")
    # a checkpoint that the trainer announces at once may be noted before the start is
    assert sorted(facts[1:-1]) == ["checkpoint", "checkpoint", "started"]
    assert (facts[0], facts[-1]) == ("accepted", "exited")
    assert [i["step"] for i in plane.of("job1", "smp")] == [10, 20]
    logged = [i for i in plane.of("job1", "log") if i["message"].startswith("Step")]
    assert len(logged) == 20
    assert {i["level"] for i in logged} == {"INFO"}
    assert exited.final_metrics == {"loss": 0.05}
    assert plane.doubles == 0
    # all confirmed: nobody looks at it any more
    await eventually(lambda: agent.relay.get("job1", 1) is None, 5)


async def test_cancel_leaves_nothing_behind(local_agent: LocalAgent, plane: ControlPlane) -> None:
    agent = await local_agent.start()
    await plane.want(plane.entry("job1", config=SLOW | {"leave_child": "session"}))
    await plane.wait_steps("job1", 3)
    processes = RunProcesses.read(agent.files.job("job1").attempt(1).pid)
    await plane.want(plane.entry("job1", desired="stop", stop_mode="cancel", grace_seconds=10))
    exited = await plane.wait_exited("job1")
    assert (exited.outcome, exited.stop_cause, exited.leftovers) == ("stopped", "cancel", 0)
    # the agent looks at a lock by taking it for a moment
    await eventually(lambda: not is_locked(agent.files.job("job1").lock), 1)
    await eventually(lambda: not is_locked(agent.files.gpu_lock("slot-0")), 1)
    assert family(processes, agent.files.job("job1").lock) == set()


async def test_trainer_that_ignores_sigterm_dies_after_the_grace(
    local_agent: LocalAgent, plane: ControlPlane
) -> None:
    await local_agent.start()
    await plane.want(plane.entry("job1", config=SLOW | {"ignore_term": True}))
    await plane.wait_steps("job1", 3)
    began = asyncio.get_running_loop().time()
    await plane.want(plane.entry("job1", desired="stop", stop_mode="cancel", grace_seconds=1))
    exited = await plane.wait_exited("job1")
    assert (exited.outcome, exited.stop_cause, exited.signal) == ("stopped", "cancel", 9)
    assert 1.0 <= asyncio.get_running_loop().time() - began < 8.0 * PATIENCE


async def test_trainer_killed_is_reported_as_killed(
    local_agent: LocalAgent, plane: ControlPlane
) -> None:
    agent = await local_agent.start()
    await plane.want(plane.entry("job1", config=SLOW))
    await plane.wait_steps("job1", 3)
    processes = RunProcesses.read(agent.files.job("job1").attempt(1).pid)
    assert processes is not None
    assert processes.trainer is not None
    processes.trainer.send(signal.SIGKILL)
    exited = await plane.wait_exited("job1")
    assert (exited.outcome, exited.reason, exited.signal) == ("failed", Reason.KILLED, 9)
    assert plane.steps("job1") == list(range(1, len(plane.steps("job1")) + 1))


async def test_shim_killed_the_trainer_goes_on_and_its_result_counts(
    local_agent: LocalAgent, plane: ControlPlane, tmp_path: Path
) -> None:
    agent = await local_agent.start()
    end = tmp_path / "end"
    await plane.want(plane.entry("job1", config={"steps": 60, "ends_with": str(end)}))
    await plane.wait_steps("job1", 3)
    processes = RunProcesses.read(agent.files.job("job1").attempt(1).pid)
    assert processes is not None
    processes.shim.send(signal.SIGKILL)
    await eventually(lambda: not processes.shim.is_alive(), 5)
    end.touch()
    exited = await plane.wait_exited("job1")
    assert (exited.outcome, exited.exit_code, exited.step) == ("completed", None, 60)


async def test_orphans_of_a_killed_shim_and_trainer_are_ended(
    local_agent: LocalAgent, plane: ControlPlane
) -> None:
    agent = await local_agent.start()
    await plane.want(plane.entry("job1", config=SLOW | {"leave_child": "same"}))
    await plane.wait_steps("job1", 3)
    files = agent.files.job("job1")
    processes = RunProcesses.read(files.attempt(1).pid)
    assert processes is not None
    assert processes.trainer is not None
    assert family(processes, files.lock) >= {processes.trainer}
    processes.shim.send(signal.SIGKILL)
    processes.trainer.send(signal.SIGKILL)
    exited = await plane.wait_exited("job1")
    assert (exited.reason, exited.leftovers) == (Reason.EXIT_UNKNOWN, 0)
    assert family(processes, files.lock) == set()


async def test_crash_in_the_trainer_gets_its_reason(
    local_agent: LocalAgent, plane: ControlPlane
) -> None:
    await local_agent.start()
    await plane.want(plane.entry("job1", config={"fail_at": 3}))
    exited = await plane.wait_exited("job1")
    assert (exited.outcome, exited.reason, exited.exit_code) == ("failed", Reason.CUDA_OOM, 1)
    assert "CUDA out of memory" in exited.message_en
    assert [i for i in plane.of("job1", "log") if i["level"] == "ERROR"]


async def test_a_cancel_does_not_wait_for_the_grace_of_a_pause(
    local_agent: LocalAgent, plane: ControlPlane
) -> None:
    agent = await local_agent.start()
    await plane.want(plane.entry("job1", config=SLOW | {"ignore_term": True}))
    await plane.wait_steps("job1", 3)
    await plane.want(plane.entry("job1", desired="pause", grace_seconds=600))
    stop = agent.files.job("job1").attempt(1).stop
    await eventually(lambda: (shim.read_json(str(stop)) or {}).get("mode") == "pause", 5)
    await plane.want(plane.entry("job1", desired="stop", stop_mode="cancel", grace_seconds=1))
    exited = await plane.wait_exited("job1")
    assert (exited.outcome, exited.stop_cause, exited.signal) == ("stopped", "cancel", 9)
    assert (shim.read_json(str(stop)) or {})["mode"] == "cancel"


async def test_pause_then_resume_is_a_new_attempt(
    local_agent: LocalAgent, plane: ControlPlane
) -> None:
    await local_agent.start()
    await plane.want(plane.entry("job1", config=SLOW))
    await plane.wait_steps("job1", 3)
    await plane.want(plane.entry("job1", desired="pause"))
    assert (await plane.wait_exited("job1")).stop_cause == "pause"
    await plane.want(plane.entry("job1", attempt=2))
    assert (await plane.wait_exited("job1", attempt=2)).outcome == "completed"
    first = [i["message"] for i in plane.of("job1", "log", 1)]
    second = [i["message"] for i in plane.of("job1", "log", 2)]
    assert second[0].startswith("Step 1/20")
    assert len(second) == 20
    assert not set(second) & set(first)


async def test_newer_attempt_stops_the_stale_one_first(
    local_agent: LocalAgent, plane: ControlPlane
) -> None:
    await local_agent.start()
    await plane.want(plane.entry("job1", config=SLOW))
    await plane.wait_steps("job1", 3)
    await plane.want(plane.entry("job1", attempt=2))
    second = await plane.wait_exited("job1", attempt=2)
    first = await plane.wait_exited("job1", attempt=1)
    assert (first.stop_cause, second.outcome) == ("requeue", "completed")
    assert first.t <= plane.of("job1", "run", 2)[0]["t"]


async def test_absent_key_stops_only_with_the_epoch(
    local_agent: LocalAgent, plane: ControlPlane
) -> None:
    agent = await local_agent.start()
    await plane.want(plane.entry("job1", config=SLOW))
    await plane.wait_steps("job1", 3)
    await plane.forget("job1")
    await eventually(lambda: "job1" not in agent.control.entries, 5)
    before = len(plane.steps("job1"))
    await plane.wait_steps("job1", before + 20)
    assert plane.exited("job1") is None
    await plane.declare_complete()
    assert (await plane.wait_exited("job1")).stop_cause == "requeue"


async def test_stop_of_what_never_started_is_answered(
    local_agent: LocalAgent, plane: ControlPlane
) -> None:
    await local_agent.start()
    await plane.want(plane.entry("job1", desired="stop", stop_mode="cancel"))
    exited = await plane.wait_exited("job1")
    assert (exited.outcome, exited.stop_cause) == ("stopped", "cancel")
    assert plane.facts("job1") == ["exited"]


async def test_drained_host_refuses(local_agent: LocalAgent, plane: ControlPlane) -> None:
    plane.drained = True
    agent = await local_agent.start()
    await eventually(lambda: agent.heartbeat.standing.drained, 5)
    await plane.want(plane.entry("job1"))
    await plane.wait_fact("job1", "refused")
    assert plane.of("job1", "run")[0]["reason"] == Reason.HOST_DRAINED


async def test_host_takes_work_the_moment_it_is_no_longer_drained(
    local_agent: LocalAgent, plane: ControlPlane
) -> None:
    plane.drained = True
    agent = await local_agent.start(beat_every=3600.0)  # the turn of a heartbeat does not come
    await eventually(lambda: agent.heartbeat.standing.drained, 5)
    plane.drained = False
    await plane.want(plane.entry("job1"))
    await plane.wait_fact("job1", "accepted")
    assert "refused" not in plane.facts("job1")


async def test_busy_slot_is_refused_and_the_first_run_is_untouched(
    local_agent: LocalAgent, plane: ControlPlane
) -> None:
    await local_agent.start()
    await plane.want(plane.entry("job1", config=SLOW))
    await plane.wait_steps("job1", 3)
    await plane.want(plane.entry("job2"))
    await plane.wait_fact("job2", "refused")
    assert plane.exited("job1") is None
    await plane.want(plane.entry("job1", desired="stop"))
    await plane.wait_exited("job1")


async def test_deleted_job_leaves_no_files(local_agent: LocalAgent, plane: ControlPlane) -> None:
    agent = await local_agent.start()
    checkpoints = agent.files.checkpoints("job1")
    checkpoints.mkdir(parents=True)
    (checkpoints / "model.safetensors").write_bytes(b"x")
    await plane.want(plane.entry("job1"))
    await plane.wait_exited("job1")
    await plane.want(plane.entry("job1", desired="collect"))
    await plane.wait_fact("job1", "collected")
    assert not checkpoints.exists()
    assert not agent.files.job("job1").log.exists()
    await plane.declare_complete()
    await plane.forget("job1")
    await eventually(lambda: not agent.files.job("job1").root.exists(), 10)


async def test_secret_reaches_the_trainer_and_nothing_else(
    local_agent: LocalAgent, plane: ControlPlane, home: Path
) -> None:
    await local_agent.start()
    await plane.want(plane.entry("job1", secret_names=("HF_TOKEN",)))
    await plane.wait_exited("job1")
    files = agent_files(local_agent, "job1")
    assert (files / "secret-length").read_text() == "{'HF_TOKEN': 19}"
    canary = "hf_canary_value_123"
    assert list(in_files(home, [canary])) == []


async def test_system_samples_and_lease_are_written(
    local_agent: LocalAgent, plane: ControlPlane
) -> None:
    agent = await local_agent.start()
    await eventually(agent.files.lease.exists, 5)
    lease = json.loads(agent.files.lease.read_text())
    assert lease["boot_id"] == shim.boot_id()
    assert lease["deadline"] == pytest.approx(lease["renewed"] + 30 * 0.98)
    report = plane.heartbeats[-1]
    assert [g.uuid for g in report.inventory.gpus] == [f"slot-{i}" for i in range(4)]
    assert report.inventory.device == "cpu"
    await plane.want(plane.entry("job1", config=SLOW))
    await eventually(
        lambda: (
            plane.heartbeats[-1].inventory.gpus[0].held_by == "job1"
            and any(run.alive for run in plane.heartbeats[-1].runs)
        ),
        30,
    )
    await eventually(lambda: plane.of("job1", "sys"), 10)
    assert plane.of("job1", "sys")[0]["rss_mib"] > 0
    await plane.want(plane.entry("job1", desired="stop"))
    await plane.wait_exited("job1")


def agent_files(local_agent: LocalAgent, job: str) -> Path:
    assert local_agent.agent is not None
    return local_agent.agent.files.job(job).attempt(1).root


def test_pid_of_a_reused_number_is_not_signalled() -> None:
    fields = shim.stat_fields(os.getpid())
    assert fields is not None
    assert ProcessRef(os.getpid(), fields[2]).is_alive()
    assert not ProcessRef(os.getpid(), fields[2] - 1).send(signal.SIGTERM)


async def test_a_trainer_is_told_where_rewards_are_and_the_token_by_the_descriptor(
    local_agent: LocalAgent, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINYARD_REWARD_TOKEN", "reward-canary-value")
    home = local_agent.broker.home
    (home / "run").mkdir(exist_ok=True)
    told = {"url": "http://127.0.0.1:4321", "pid": os.getpid()}
    (home / "run" / "reward.json").write_text(json.dumps(told))
    agent = await local_agent.start(rules=True)
    await plane.want(plane.entry("job1", config={"algorithm": "grpo"}, oom_halvings=2))
    await plane.wait_exited("job1")
    files = agent.files.job("job1").attempt(1)
    spec = RunSpec.model_validate_json(files.spec.read_bytes())
    assert agent.rules is not None
    assert spec.rules_file == agent.rules.run_file
    assert (spec.reward_url, spec.oom_halvings) == (told["url"], 2)
    assert (files.root / "secret-length").read_text() == "{'TRAINYARD_REWARD_TOKEN': 19}"
    for file in (files.spec, files.launch, agent.files.job("job1").log):
        assert "reward-canary" not in file.read_text()
    await plane.want(plane.entry("job2", config={"algorithm": "sft"}))
    await plane.wait_exited("job2")
    assert not (agent.files.job("job2").attempt(1).root / "secret-length").exists()


def test_an_address_of_a_service_that_is_gone_is_not_passed_on(tmp_path: Path) -> None:
    settings = AgentSettings(home=tmp_path)
    assert settings.central_reward_url is None
    (tmp_path / "run").mkdir()
    gone = {"url": "http://127.0.0.1:4321", "pid": 2**22 + 1}
    (tmp_path / "run" / "reward.json").write_text(json.dumps(gone))
    assert settings.central_reward_url is None
    named = AgentSettings(home=tmp_path, reward_url="http://reward:8100/")
    assert named.central_reward_url == "http://reward:8100"
