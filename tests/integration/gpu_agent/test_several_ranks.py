"""One job on two slots: the agent starts, stops and buries both ranks as one attempt. Ranks talk over gloo."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from services.gpu_agent import checkpoint_store, shim
from services.gpu_agent.daemon import Options
from services.gpu_agent.layout import JobFiles
from services.gpu_agent.processes import RunProcesses, holders, is_locked, lock_files
from tests.conftest import eventually
from tests.integration.gpu_agent.conftest import LocalAgent
from tests.integration.gpu_agent.control_plane import ControlPlane

pytestmark = pytest.mark.integration

TWO = {"gpus": (0, 1), "gpu_uuids": ("slot-0", "slot-1")}


@pytest.fixture
def config(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    data = tmp_path / "train.jsonl"
    rows = ({"prompt": f"{n}+1=", "response": str(n + 1)} for n in range(16))
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {
        "model_path": str(tiny), "train_data_path": str(data), "num_gpus": 2, "max_steps": 4000,
        "batch_size": 2, "save_steps": 2, "context_length": 64, "learning_rate": 1e-3, "seed": 1,
        "save_total_limit": 2, "gradient_checkpointing": False,
    }  # fmt: skip


def ranks(job: JobFiles) -> list[int]:
    return [pid for n in (0, 1) for pid in holders(job.rank_lock(n))]


def nothing_left(job: JobFiles) -> bool:
    found = RunProcesses.read(job.attempt(1).pid)
    assert found is not None
    gone = not any(r.is_alive() for r in (found.shim, found.trainer) if r)
    return gone and not any(is_locked(path) for path in lock_files(job.lock))


async def test_stop_resume_and_sudden_death(
    local_agent: LocalAgent, plane: ControlPlane, config: dict[str, Any]
) -> None:
    agent = await local_agent.start(Options(ack_seconds=0.2))
    job = agent.files.job("job1")
    entry = plane.entry("job1", config=config, secret_names=("HF_TOKEN",), **TWO)
    await plane.want(entry)
    await eventually(lambda: len(plane.steps("job1")) >= 2, 60)
    pids = ranks(job)
    assert len(pids) == 2
    threads = {
        variable
        for pid in pids
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if variable.startswith(b"OMP_NUM_THREADS=")
    }
    assert threads == {b"OMP_NUM_THREADS=1"}
    assert not any(b"hf_canary" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)

    # asked to stop, both end after the same step, with a checkpoint of it
    await plane.want(entry.model_copy(update={"desired": "pause"}))
    exited = await plane.wait_exited("job1", timeout=30)
    assert (exited.outcome, exited.stop_cause, exited.leftovers) == ("stopped", "pause", 0)
    steps = [
        json.loads(job.attempt(1).root.joinpath(f"result.{n}.json").read_bytes())["step"]
        for n in (0, 1)
    ]
    assert steps == [exited.step, exited.step]
    newest = checkpoint_store.newest_readable(agent.files.checkpoints("job1"))
    assert newest is not None
    assert newest.step == exited.step
    assert plane.steps("job1") == list(range(1, exited.step + 1))  # each said once
    assert nothing_left(job)

    # one rank dies: the attempt ends, says how, and leaves no process
    await plane.want(plane.entry("job1", attempt=2, resume=True, config=config, **TWO))
    await eventually(lambda: len(plane.steps("job1", 2)) >= 1, 60)
    assert plane.steps("job1", 2)[0] == exited.step + 1
    victim = next(iter(holders(job.rank_lock(1))))
    os.kill(victim, signal.SIGKILL)
    ended = await plane.wait_exited("job1", attempt=2, timeout=30)
    assert (ended.outcome, ended.reason, ended.signal) == ("failed", "killed", signal.SIGKILL)
    assert ended.leftovers == 0
    await eventually(lambda: nothing_left(job), 5)
    log = job.log.read_text()
    assert "hf_canary" not in log


async def test_a_rank_of_an_earlier_attempt_keeps_the_next_from_starting(
    local_agent: LocalAgent, plane: ControlPlane, config: dict[str, Any]
) -> None:
    agent = await local_agent.start(Options(ack_seconds=0.2))
    job = agent.files.job("job1")
    job.root.mkdir(parents=True)
    job.lock.write_text("job1 1\n")
    orphan = os.open(job.rank_lock(1), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(orphan, fcntl.LOCK_EX)
    try:
        await plane.want(plane.entry("job1", attempt=2, config=config, **TWO))
        await plane.wait_fact("job1", "refused", attempt=2, timeout=15)
    finally:
        os.close(orphan)
    refused = next(f for f in plane.of("job1", "run", 2) if f["type"] == "run.refused.v1")
    assert "lock.1" in refused["message_en"]
    assert shim.read_json(str(job.attempt(2).pid)) is None
