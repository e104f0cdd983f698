"""A kill while checkpoints are thinned out leaves none that is listed and gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.gpu_agent import checkpoint_store
from services.gpu_agent.trainers.context import EventWriter, StopFlag, TrainContext
from services.gpu_agent.trainers.saving import CheckpointWriter
from shared.runs import RunSpec


class Killed(BaseException):
    """Stands for the process's end at one instruction."""


def seal(folder: Path, step: int) -> None:
    temporary = checkpoint_store.begin(folder, step)
    (temporary / "weights").write_bytes(b"w")
    checkpoint_store.publish(temporary, step, "full", 0.0, {}, {})


def test_a_deletion_is_said_before_the_folder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RunSpec(
        job="j", attempt=1, algorithm="sft", model_path="m", train_data_path="d",
        checkpoint_dir=tmp_path / "kept", work_dir=tmp_path, attempt_dir=tmp_path,
    )  # fmt: skip
    context = TrainContext(spec, EventWriter(tmp_path / "events.jsonl"), StopFlag(tmp_path), ())
    writer = CheckpointWriter(context, "full", 1)
    for step in (0, 2, 4, 6):
        seal(spec.checkpoint_dir, step)
    real = checkpoint_store.delete

    def killed(checkpoint: checkpoint_store.Checkpoint) -> None:
        real(checkpoint)
        raise Killed

    monkeypatch.setattr(checkpoint_store, "delete", killed)
    with pytest.raises(Killed):
        writer._thin_out(6, None)
    said = [
        json.loads(line)["step"] for line in (tmp_path / "events.jsonl").read_text().splitlines()
    ]
    there = {c.step for c in checkpoint_store.list_complete(spec.checkpoint_dir)}
    assert said == [2]
    assert there == {0, 4, 6}
