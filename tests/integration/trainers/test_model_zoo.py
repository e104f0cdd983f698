"""Models made on the spot: whole or absent, the same every time, any text comes back."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
import os
import subprocess
import sys

import pytest

from services.gpu_agent.trainers.model_zoo.__main__ import is_complete, main, make

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(("kind", "parameters"), [("tiny", 140_032), ("arithmetic", 772_480)])
def test_a_made_model_loads_and_is_always_the_same(tmp_path, kind, parameters):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert f"{parameters:,} parameters" in make(kind, tmp_path / "one")
    make(kind, tmp_path / "two")
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    text = "12+3=\\boxed{15}\n 你好 🙂\tuser\nassistant\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert "{%- generation -%}" in tokenizer.chat_template


def test_making_it_again_does_nothing_and_other_folders_are_left_alone(tmp_path, capsys):
    out = tmp_path / "m"
    out.mkdir()
    assert main(["tiny", "--out", str(out)]) == 0
    assert is_complete(out)
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert main(["tiny", "--out", str(out)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert main(["tiny", "--out", str(other)]) == 1
    assert "something else" in capsys.readouterr().err
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "other"]


PRELOAD = """
import os, sys, threading
from services.gpu_agent.trainers.preload import preload
preload()
import torch
assert not torch.cuda.is_initialized()
assert "services.gpu_agent.trainers.sft" in sys.modules
sys.stdout.write(f"threads={len(os.listdir('/proc/self/task'))} python={threading.active_count()}\\n")
sys.stdout.flush()
child = os.fork()
if child == 0:
    import gc
    gc.freeze()
    from pathlib import Path
    from services.gpu_agent.trainers.entry import run_attempt
    os._exit(run_attempt(Path(sys.argv[1]), {}))
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_child_of_a_preloaded_process_trains_as_a_cold_one(runner):
    config = {"max_steps": 3, "batch_size": 4}
    cold = runner("cold", config)
    attempt_dir = runner.prepare("warm", config, threads=2)
    done = subprocess.run(
        [sys.executable, "-c", PRELOAD, str(attempt_dir)],
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    warm = runner.read("warm", 1, 0)
    assert warm.result["outcome"] == "completed"
    assert warm.series("loss")[1] == pytest.approx(cold.series("loss")[1], rel=1e-5)
    assert sorted(warm.series("loss")) == [1, 2, 3]
