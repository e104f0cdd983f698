"""A process that stands where verl would: how we start, hear, save, stop and resume it; and the reward that it calls."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from services.gpu_agent import checkpoint_store
from tests.conftest import eventually

pytestmark = pytest.mark.integration

STAND_IN = """
import json, os, sys, time
from pathlib import Path

given = dict(a.lstrip("+").split("=", 1) for a in sys.argv[1:])
steps, every = int(given["trainer.total_training_steps"]), int(given["trainer.save_freq"])
out = Path(given["trainer.default_local_dir"])
begin = int(given["trainer.resume_from_path"].rpartition("_")[2]) if "trainer.resume_from_path" in given else 0
sys.path.insert(0, str(Path(given["custom_reward_function.path"]).parent))
import verl_reward
socket_path = given["custom_reward_function.reward_kwargs.socket_path"]
row = {"row": json.dumps({"prompt": "3+4=", "solution": "7"})}
for text in (r"\\boxed{7}", r"\\boxed{8}"):
    print("scored", verl_reward.compute_score("trainyard", text, "7", row, socket_path=socket_path), flush=True)
for step in range(begin + 1, steps + 1):
    if os.environ.get("STAND_IN") == "fail" and step == 3:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if os.environ.get("STAND_IN") == "mute" and step == 3:
        raise RuntimeError("trainyard: no verdict on a completion after 4 tries (service_away)")
    while os.environ.get("STAND_IN") == "wait" and step == 3:
        time.sleep(0.05)
    print(f"(TaskRunner pid=7) step:{step} - actor/pg_loss:0.1 - critic/score/mean:{step / 10} - training/epoch:0", flush=True)
    if step % every == 0 or step == steps:
        folder = out / f"global_step_{step}" / "actor" / "huggingface"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"x" * step)
        (folder.parent / "optim_world_size_1_rank_0.pt").write_bytes(b"y")
        (out / "latest_checkpointed_iteration.txt").write_text(str(step))
        print("saved", flush=True)
"""
CONFIG = {
    "engine": "verl", "batch_size": 2, "max_steps": 5, "save_steps": 2, "reward_fn_type": "math_verify",
    "rollout_n": 2,
}  # fmt: skip

CONFIG_FIELDS = {"algorithm": "grpo"}


@pytest.fixture
def verl(runner, rules_file, tmp_path, monkeypatch):
    package = tmp_path / "site" / "verl" / "trainer"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "main_ppo.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    rows = [{"prompt": f"{n}+1=", "solution": str(n + 1)} for n in range(8)]
    runner.train.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setitem(CONFIG_FIELDS, "rules_file", rules_file)
    return runner


def test_its_lines_are_metrics_and_its_saves_are_checkpoints(verl, capfd):
    ended = verl("verl", CONFIG, **CONFIG_FIELDS)
    assert (ended.code, ended.result["outcome"], ended.result["step"]) == (0, "completed", 5)
    assert ended.series("reward") == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}
    assert [(c["step"], c["last"]) for c in ended.of("checkpoint")] == [
        (2, False),
        (4, False),
        (5, True),
    ]
    last = checkpoint_store.newest_readable(ended.checkpoint_dir)
    assert last is not None
    assert {p.name for p in last.path.iterdir()} == {
        "config.json", "model.safetensors", "manifest.json", "global_step_5",
    }  # fmt: skip
    assert not list(ended.checkpoint_dir.glob(".tmp-*"))
    said = capfd.readouterr().out
    assert "scored {'score': 1.0, 'acc': 1.0}" in said
    assert "scored {'score': 0.0, 'acc': 0.0}" in said
    assert "topsecretvalue" not in said
    rest = verl("verl", CONFIG | {"max_steps": 7}, 2, **CONFIG_FIELDS, resume_from=str(last.path))
    assert sorted(rest.series("reward")) == [6, 7]
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(ended.attempt_dir / "verl" / "train.parquet").to_pylist()
    assert table[3]["prompt"] == [{"role": "user", "content": "3+1="}]
    assert table[3]["reward_model"] == {"ground_truth": "4"}
    assert json.loads(table[3]["extra_info"]["row"])["solution"] == "4"


@pytest.mark.parametrize(
    ("how", "reason", "word"),
    [("fail", "cuda_oom", "out of memory"), ("mute", "reward_unavailable", "")],
)
def test_its_failure_has_a_reason(verl, monkeypatch, how, reason, word):
    monkeypatch.setenv("STAND_IN", how)
    ended = verl("verl", CONFIG, **CONFIG_FIELDS)
    assert (ended.code, ended.result["outcome"], ended.result["reason"]) == (1, "failed", reason)
    assert word in ended.result["message"]
    assert ended.steps_on_disk() == [2]


def test_an_adapter_is_no_model_to_start_from(verl, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    ended = verl("verl", CONFIG, **CONFIG_FIELDS, model_path=str(tmp_path / "adapter"))
    assert ended.result["reason"] == "config_invalid"
    assert "LoRA adapter" in ended.result["message"]


async def test_a_stop_ends_it_and_keeps_its_last_save(verl, monkeypatch):
    from services.gpu_agent.trainers.entry import run_attempt

    monkeypatch.setenv("STAND_IN", "wait")
    attempt_dir = verl.prepare("verl", CONFIG, **CONFIG_FIELDS)
    saved = verl.root / "verl" / "checkpoints" / "checkpoint-2"

    def stop_once_saved():
        import time

        deadline = time.monotonic() + 240
        while not saved.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        (attempt_dir / "stop.json").write_text('{"mode": "pause"}')
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_once_saved)
    thread.start()
    code = run_attempt(attempt_dir, {})
    thread.join()
    ended = verl.read("verl", 1, code)
    assert (code, ended.result["outcome"], ended.result["stop_cause"]) == (0, "stopped", "pause")
    assert ended.steps_on_disk() == [2]
    await eventually(lambda: not children(), 5)


def children() -> list[str]:
    mine = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [p for p in mine if b"main_ppo" in Path(f"/proc/{p}/cmdline").read_bytes()]


def test_what_nobody_can_score_is_an_error_and_never_zero(runner, rules_file, monkeypatch):
    from services.gpu_agent.trainers import verl_judge, verl_reward
    from services.gpu_agent.trainers.context import EventWriter, StopFlag, TrainContext
    from services.gpu_agent.trainers.reward_spec import reward_plan
    from services.gpu_agent.trainers.rewarding import Scorer
    from shared.runs import RunSpec

    attempt_dir = runner.prepare("reward", CONFIG, algorithm="grpo", rules_file=rules_file)
    spec = RunSpec.model_validate_json((attempt_dir / "spec.json").read_bytes())
    context = TrainContext(spec, EventWriter(Path(os.devnull)), StopFlag(attempt_dir))
    scorer = Scorer(context, reward_plan(spec.config, {}))
    monkeypatch.setattr(verl_judge, "FIRST_PAUSE", 0.01)
    with verl_judge.serving(scorer) as path:
        row = {"row": json.dumps({"prompt": [{"role": "user", "content": "3+4="}]})}
        with pytest.raises(verl_reward.NoVerdict, match=r"no verdict.*gold_missing"):
            verl_reward.compute_score("t", "\\boxed{7}", None, row, socket_path=str(path))
    assert not path.parent.exists()
    scorer.close()
