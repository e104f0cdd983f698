"""Bad input and sudden death: a reason, a sentence in both languages, and no half checkpoint."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from services.gpu_agent import checkpoint_store

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]


def failure(runner, config=None, **fields):
    ended = runner("bad", {"max_steps": 1} | (config or {}), **fields)
    result = ended.result
    assert (ended.code, result["outcome"]) == (1, "failed")
    assert result["traceback"]
    assert "topsecretvalue" not in json.dumps(result)
    assert not ended.steps_on_disk()
    return result["reason"], result["message"], result["message_zh"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": \n', "Line 2"),
        ('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n', 'no column "response"'),
        ('{"prompt": "a", "response": null}\n', "null"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "response"),
        ('{"messages": [{"role": "user", "content": "hi"}]}\n', "ends with assistant"),
        ("\n\n", "no rows"),
    ],
)
def test_bad_rows_are_named(runner, text, word):
    runner.train.write_text(text)
    reason, message, chinese = failure(runner)
    assert reason == "dataset_invalid"
    assert word in message
    assert "train_data_path" in message
    assert chinese != message


def test_rows_without_room_for_an_answer(runner):
    reason, message, _ = failure(runner, {"context_length": 8})
    assert reason == "dataset_invalid"
    assert "raise context_length" in message


def test_things_that_are_not_there(runner, tmp_path):
    assert failure(runner, train_data_path=str(tmp_path / "none.jsonl"))[0] == "dataset_missing"
    shutil.rmtree(tmp_path / "bad")
    reason, message, _ = failure(runner, model_path=str(tmp_path / "nomodel"))
    assert reason == "model_missing"
    assert "nomodel" in message


def test_a_cut_model_file(runner, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(runner.tiny, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert failure(runner, model_path=str(broken))[0] == "model_invalid"


def test_a_folder_without_a_model(runner, tmp_path):
    (tmp_path / "empty").mkdir()
    reason, message, _ = failure(runner, model_path=str(tmp_path / "empty"))
    assert reason == "model_invalid"
    assert "config.json" in message


@pytest.mark.parametrize(
    ("config", "fields", "word"),
    [
        ({"precision": "fp16"}, {}, "fp16"),
        ({"eval_generate": True}, {}, "eval_data_path"),
        ({"stop_metric": "loss"}, {}, "stop_value"),
        ({"engine": "verl"}, {}, "engine"),
        ({"lora_enabled": True, "lora_target_modules": ["nothing_like_it"]}, {}, "nothing_like_it"),
        ({}, {"algorithm": "kto"}, "kto"),
    ],
)
def test_parameters_that_cannot_work(runner, config, fields, word):
    reason, message, _ = failure(runner, config, **fields)
    assert reason == "config_invalid"
    assert word in message


def test_a_damaged_checkpoint_is_not_resumed_from(runner):
    first = runner("first", {"max_steps": 2})
    optimizer = first.checkpoint_dir / "checkpoint-2" / "optimizer.pt"
    data = bytearray(optimizer.read_bytes())
    data[len(data) // 2] ^= 1
    optimizer.write_bytes(data)
    reason, message, _ = failure(runner, resume_from=first.result["last_checkpoint"])
    assert reason == "checkpoint_corrupt"
    assert "optimizer.pt" in message


def test_a_full_disk_leaves_the_older_checkpoint(runner, monkeypatch):
    real = checkpoint_store.publish

    def full_disk(temporary, step, *rest):
        if step == 3:
            raise OSError(28, "No space left on device")
        return real(temporary, step, *rest)

    monkeypatch.setattr(checkpoint_store, "publish", full_disk)
    ended = runner("disk", {"max_steps": 5, "save_steps": 3})
    assert ended.result["reason"] == "disk_full"
    assert ended.steps_on_disk() == [0]
    assert [p.name for p in ended.checkpoint_dir.iterdir()] == ["checkpoint-0"]


def test_a_spec_that_cannot_be_read_still_gives_a_result(tmp_path):
    from services.gpu_agent.trainers.entry import run_attempt

    (tmp_path / "spec.json").write_text("{}")
    assert run_attempt(tmp_path, {}) == 1
    assert json.loads((tmp_path / "result.json").read_text())["outcome"] == "failed"


COLD = """
import os, signal, sys
from pathlib import Path
from services.gpu_agent import checkpoint_store
real = checkpoint_store._digest_durably
def die_in_the_middle(path):
    if ".tmp-checkpoint-4-" in str(path) and path.name == "optimizer.pt":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path)
checkpoint_store._digest_durably = die_in_the_middle
from services.gpu_agent.trainers.__main__ import main
sys.exit(main([sys.argv[1], "--secrets-fd", sys.argv[2]]))
"""


def test_kill_9_in_the_middle_of_a_save_and_resume(runner):
    config = {"max_steps": 6, "save_steps": 2}
    whole = runner("whole", config)
    attempt_dir = runner.prepare("killed", config)
    reading, writing = os.pipe()
    os.write(writing, b'{"HF_TOKEN": "hf_thisisnotarealtoken"}')
    os.close(writing)
    with (attempt_dir / "log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-c", COLD, str(attempt_dir), str(reading)],
            pass_fds=[reading],
            stdout=log,
            stderr=log,
            timeout=480,
            check=False,
        )
    os.close(reading)
    assert done.returncode == -signal.SIGKILL
    assert not (attempt_dir / "result.json").exists()
    assert b"thisisnotarealtoken" not in (attempt_dir / "log").read_bytes()
    checkpoints = runner.root / "killed" / "checkpoints"
    assert [c.step for c in checkpoint_store.list_complete(checkpoints)] == [2, 0]
    assert list(checkpoints.glob(".tmp-checkpoint-4-*"))
    newest = checkpoint_store.newest_readable(checkpoints)
    ended = runner("killed", config, 2, resume_from=str(newest.path))
    assert ended.code == 0
    assert not list(checkpoints.glob(".tmp-*"))
    expected = {s: v for s, v in whole.series("loss").items() if s > 2}
    assert ended.series("loss") == expected
