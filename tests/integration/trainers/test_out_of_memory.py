"""A batch that the machine has no memory for: a real allocation fails, the run says so, and halved often enough it fits."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
import os
import resource
from pathlib import Path

import pytest

from tests.integration.trainers.conftest import write_jsonl

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # those of torch, transformers and trl are not ours
]

ROOM = 256 << 20
"""What a run may allocate beyond what the process has mapped already, in bytes."""
BATCH = 64
CONFIG = {"max_steps": 2, "batch_size": BATCH, "context_length": 512, "save_steps": 100}


def within_room(attempt_dir: Path) -> int:
    """Run an attempt in a child that cannot map more than ROOM; return its exit status."""
    from services.gpu_agent.trainers.entry import run_attempt

    child = os.fork()
    if child == 0:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM, mapped + ROOM))
        os._exit(run_attempt(attempt_dir, {}))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_batch_that_is_too_large_fits_once_it_is_halved_often_enough(runner, capfd):
    long = [{"prompt": f"{n}" * 200, "response": "x" * 300} for n in range(BATCH)]
    train = str(write_jsonl(runner.root / "long.jsonl", long))
    whole = runner("whole", CONFIG, train_data_path=train)
    assert whole.code == 0, whole.result

    attempts = []
    for attempt in range(1, 8):
        halvings = attempt - 1
        folder = runner.prepare(
            "tight", CONFIG, attempt, train_data_path=train, oom_halvings=halvings
        )
        attempts.append(runner.read("tight", attempt, within_room(folder)))
        if attempts[-1].code == 0:
            break
    assert attempts[0].code == 1
    assert attempts[0].result["reason"] == "host_oom"
    assert "allocate" in attempts[0].result["message"]
    fits = attempts[-1]
    assert fits.code == 0, fits.result
    assert len(attempts) > 1
    log = capfd.readouterr().out
    assert f"rows of one forward pass are halved {len(attempts) - 1} times" in log
    # the same rows made each step, so the figures are the same but for rounding
    for name in ("loss", "grad_norm"):
        for step, value in whole.series(name).items():
            assert fits.series(name)[step] == pytest.approx(value, rel=5e-3)
    assert fits.series("num_tokens") == whole.series("num_tokens")
