"""What a user does beside training: drains a host, adds a second one, opens the api to others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.pacer import Pacer
from tests.e2e.stack import Stack, until
from tests.e2e.test_spine import STEPS, losses, short_steps, steps_reached

pytestmark = pytest.mark.e2e
START_SECONDS = 120
"""A cold start of a trainer on a machine that is busy with other tests."""
TRAINYARD = [sys.executable, "-P", "-m", "trainyard.cli.main"]


def test_drained_host_gives_its_job_back_and_takes_it_again(stack: Stack, tiny_model: Path) -> None:
    client = stack.client
    with Pacer([stack.jobs_dir]):
        job = client.jobs.submit(short_steps(tiny_model, max_steps=STEPS, save_steps=50)).uuid
        until(lambda: steps_reached(stack, job) >= 5, START_SECONDS, "training runs", stack)
        (host,) = client.hosts.list()
        client.hosts.drain(host.id, stop_jobs=True)
        until(lambda: client.jobs.get(job).status == "PENDING", 30, "the job waits", stack)
    waiting = f"host {host.label} is drained"
    until(lambda: waiting in (client.jobs.get(job).waiting_for or ""), 10, "it says why", stack)
    progress = client.jobs.get(job).progress
    assert progress is not None
    assert progress.eta_seconds is None
    client.hosts.undrain(host.id)
    ended = stack.ended(job, START_SECONDS)
    # The agent that still believes in the drain does not waste an attempt by refusing.
    assert (ended.status, ended.attempt) == ("COMPLETED", 2), ended.message
    assert sorted(losses(stack, job)) == list(range(1, STEPS + 1))


def test_a_second_host_joins_by_code_and_runs_what_is_pinned_to_it(
    stack: Stack, tiny_model: Path, tmp_path: Path
) -> None:
    client = stack.client
    env = os.environ | {"TRAINYARD_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    env["TRAINYARD_CHECKPOINT_DIR"] = str(tmp_path / "checkpoints")
    code = client.hosts.join_code()["code"]
    join = [*TRAINYARD, "agent", "join", client.url, code, "--label", "box2"]
    subprocess.run(join, env=env, check=True, timeout=START_SECONDS)
    again = subprocess.run(join, env=env, capture_output=True, timeout=START_SECONDS, check=False)
    assert again.returncode != 0
    with (tmp_path / "agent.log").open("ab") as log:
        agent = subprocess.Popen([*TRAINYARD, "agent"], env=env, stdout=log, stderr=log)
    try:
        job = client.jobs.submit(short_steps(tiny_model, max_steps=4, host="box2"))
        ended = stack.ended(job.uuid, START_SECONDS)
        assert (ended.status, ended.host) == ("COMPLETED", "box2"), ended.message
        assert ended.checkpoint_dir == str(tmp_path / "checkpoints" / job.uuid)
    finally:
        agent.terminate()
        assert agent.wait(START_SECONDS) == 0


def test_a_stack_open_to_others_without_a_token_refuses_at_once(tmp_path: Path) -> None:
    open_to_all = Stack(tmp_path, TRAINYARD_API_HOST="0.0.0.0").env
    open_to_all.pop("TRAINYARD_API_TOKEN", None)
    found = subprocess.run(
        [*TRAINYARD, "up"],
        env=open_to_all,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert found.returncode != 0
    assert "TRAINYARD_API_TOKEN" in found.stderr + found.stdout
