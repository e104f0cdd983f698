"""The real zygote, the real checks and the real SFT trainer, through the agent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.gpu_agent.daemon import Options
from tests.conftest import eventually
from tests.integration.gpu_agent.conftest import LocalAgent
from tests.integration.gpu_agent.control_plane import ControlPlane

pytestmark = pytest.mark.integration


async def test_warm_start_trains_and_resumes(
    local_agent: LocalAgent, plane: ControlPlane, tiny: Path, tmp_path: Path
) -> None:
    data = tmp_path / "train.jsonl"
    row = json.dumps({"prompt": "1+1=", "response": "2"})
    data.write_text(f"{row}\n" * 16)
    agent = await local_agent.start(Options(ack_seconds=0.2), zygote=True)
    assert agent.zygote is not None
    assert await agent.zygote.wait_ready(120)
    config = {
        "model_path": str(tiny), "train_data_path": str(data), "num_epochs": 1, "max_steps": 4,
        "batch_size": 2, "gradient_accumulation_steps": 1, "save_steps": 2, "context_length": 64,
        "learning_rate": 1e-3, "logging_steps": 1, "seed": 1, "save_total_limit": 3,
    }  # fmt: skip
    await plane.want(plane.entry("job1", config=config))
    await plane.wait_fact("job1", "started", timeout=20)
    exited = await plane.wait_exited("job1", timeout=60)
    assert exited.outcome == "completed", exited
    facts = plane.of("job1", "run")
    started = next(f for f in facts if f["type"] == "run.started.v1")
    first_step = next(i for i in plane.of("job1", "met") if i["type"] == "metric")
    print(f"warm: started → first metric {first_step['t'] - started['t']:.2f} s")
    assert started["warm"] is True
    assert [f["step"] for f in facts if f["type"] == "run.checkpoint.v1" and not f["deleted"]] == [
        0,
        2,
        4,
    ]
    levels = {i["level"] for i in plane.of("job1", "log")}
    assert "ERROR" not in levels
    longer = plane.entry("job1", attempt=2, resume=True, config=config | {"max_steps": 6})
    await plane.want(longer)
    again = await plane.wait_exited("job1", attempt=2, timeout=60)
    assert (again.outcome, again.step) == ("completed", 6)
    # A checkpoint that the trainer announces at once may be noted before the start is.
    resumed = next(f for f in plane.of("job1", "run", 2) if f["type"] == "run.started.v1")
    assert resumed["resume_step"] == 4
    assert plane.steps("job1", 2)[0] == 5


async def test_wrong_dataset_fails_the_job_with_its_line(
    local_agent: LocalAgent, plane: ControlPlane, tiny: Path, tmp_path: Path
) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    agent = await local_agent.start(Options(ack_seconds=0.2))
    await plane.want(
        plane.entry("job1", config={"model_path": str(tiny), "train_data_path": str(data)})
    )
    exited = await plane.wait_exited("job1")
    assert (exited.outcome, exited.reason) == ("failed", "dataset_invalid")
    assert "2" in exited.message_en
    assert plane.facts("job1") == ["exited"]
    assert any(
        "Line 2" in i["message"] or "line 2" in i["message"] for i in plane.of("job1", "log")
    )
    await eventually(lambda: agent.relay.get("job1", 1) is None, 5)
