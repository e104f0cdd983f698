"""Preference pairs of sums for the trainers that take them."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.gpu_agent import checkpoint_store
from tests.integration.trainers.conftest import PAIRS, Ended, Runner, write_jsonl


def pairs(count: int, offset: int = 0) -> list[dict[str, str]]:
    return [
        {"prompt": f"{a}+{b}=", "chosen": f"\\boxed{{{a + b}}}", "rejected": f"{a - b} perhaps"}
        for a, b in PAIRS[offset : offset + count]
    ]


class PairRunner:
    """Runs jobs of one algorithm on pairs; `evaluated` adds held-out ones."""

    def __init__(self, runner: Runner, algorithm: str) -> None:
        self.runner = runner
        self.algorithm = algorithm
        self.train = write_jsonl(runner.root / "pairs.jsonl", pairs(24))
        self.held_out = write_jsonl(runner.root / "held-out.jsonl", pairs(9, 40))

    def __call__(
        self, job: str, config: dict[str, Any], attempt: int = 1, *, evaluated: bool = False, **fields: Any
    ) -> Ended:  # fmt: skip
        there: dict[str, Any] = {"train_data_path": str(self.train), "algorithm": self.algorithm}
        if evaluated:
            there["eval_data_path"] = str(self.held_out)
        return self.runner(job, config, attempt, **there | fields)

    def sft_lora(self) -> Path:
        """Return a LoRA checkpoint of a fine-tuning job."""
        config = {"max_steps": 3, "lora_enabled": True, "learning_rate": 2e-2}
        ended = self.runner("sft", config)
        assert ended.code == 0
        return ended.checkpoint_dir / "checkpoint-3"


def assert_resumes_exactly(run: PairRunner, extra: dict[str, Any], **fields: Any) -> None:
    """Compare a whole run with those that go on from its checkpoints, metric by metric."""
    config = {
        "num_epochs": 2, "batch_size": 3, "gradient_accumulation_steps": 2, "save_steps": 3, "eval_steps": 4,
        "save_total_limit": 20, "lr_scheduler_type": "cosine", "warmup_steps": 2, **extra,
    }  # fmt: skip
    whole = run("whole", config, evaluated=True, **fields)
    assert whole.code == 0, whole.result
    assert whole.result["total_steps"] == 8
    for step in (3, 6):
        start = str(whole.checkpoint_dir / f"checkpoint-{step}")
        again = run(f"from{step}", config, 2, evaluated=True, resume_from=start, **fields)
        assert again.code == 0, again.result
        for name in ("loss", "grad_norm", "reward_margin", "accuracy", "num_tokens", "eval_loss"):
            expected = {s: v for s, v in whole.series(name).items() if s > step}
            assert expected, name
            differences = {s: v - again.series(name)[s] for s, v in expected.items()}
            assert differences == dict.fromkeys(expected, 0.0), name


def assert_goes_on_after_a_kill(run: PairRunner, extra: dict[str, Any]) -> None:
    """Kill an attempt with SIGKILL between two checkpoints; the next one gives the losses of a run that was left alone."""
    from services.gpu_agent.trainers.context import TrainContext
    from services.gpu_agent.trainers.entry import run_attempt

    config = {"max_steps": 14, "save_steps": 4, **extra}
    whole = run("alone", config)
    fields = {"train_data_path": str(run.train), "algorithm": run.algorithm}
    attempt_dir = run.runner.prepare("killed", config, **fields)
    real = TrainContext.metric

    def metric(
        context: TrainContext, step: int, epoch: float | None, metrics: Mapping[str, float]
    ) -> None:
        real(context, step, epoch, metrics)
        if step == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        TrainContext.metric = metric  # type: ignore[method-assign]
        os._exit(run_attempt(attempt_dir, {}))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (attempt_dir / "result.json").exists()
    newest = checkpoint_store.list_complete(run.runner.root / "killed" / "checkpoints")[0]
    assert newest.step >= 4
    again = run("killed", config, 2, resume_from=str(newest.path))
    assert again.code == 0, again.result
    expected = {s: v for s, v in whole.series("loss").items() if s > newest.step}
    assert expected
    differences = {s: v - again.series("loss")[s] for s, v in expected.items()}
    assert differences == dict.fromkeys(expected, 0.0)
