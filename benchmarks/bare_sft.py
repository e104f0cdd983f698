"""What the platform costs over a bare TRL script: the same model, rows and parameters, side by side in one process.

    python benchmarks/bare_sft.py [--model DIR] [--data FILE] [--steps 200] [--batch-size 64] [--rounds 3]

Compares steps only (checkpoint-0 and saves aside) by processor and by wall time; rounds change places, medians count.
On a machine with other load both swing by 20 %; the time inside the platform's own hooks is then the figure to trust.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# ruff: noqa: E402 - the environment must be set before the libraries are imported
import torch
from datasets import load_dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from services.gpu_agent.trainers.entry import run_attempt
from services.gpu_agent.trainers.model_zoo.__main__ import make
from services.gpu_agent.trainers.watching import RunWatcher

WARM_UP_STEPS = 5
Times = list[tuple[float, float]]
OWN: list[float] = []
"""Seconds in each call of the platform's two hooks of a step."""


class Clock(TrainerCallback):
    """Notes processor and wall time at the end of every step."""

    def __init__(self) -> None:
        self.times: Times = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append((time.process_time(), time.perf_counter()))


def bare(options: argparse.Namespace, folder: Path) -> tuple[Times, float]:
    """What a person would write by hand."""
    rows = load_dataset(
        "json", data_files=str(options.data), split="train", cache_dir=str(folder / "cache")
    )
    rows = rows.map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["response"]}],
        },
        remove_columns=rows.column_names,
    )
    clock = Clock()
    trainer = SFTTrainer(
        model=str(options.model),
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=1e-3,
            max_length=options.context_length,
            logging_steps=1,
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            activation_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            seed=42,
        ),
        train_dataset=rows,
        callbacks=[clock],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return clock.times, losses[-1]


def platform(options: argparse.Namespace, folder: Path) -> tuple[Times, float]:
    """The same through `run_attempt`, with its events, log, metrics and watches."""
    times: Times = []
    step_end, log = RunWatcher.on_step_end, RunWatcher.on_log

    def timed_step_end(self: RunWatcher, *args: Any, **kwargs: Any) -> None:
        times.append((time.process_time(), time.perf_counter()))
        OWN.append(own(step_end, self, *args, **kwargs))

    def timed_log(self: RunWatcher, *args: Any, **kwargs: Any) -> None:
        OWN.append(own(log, self, *args, **kwargs))

    spec = {
        "job": "bench",
        "attempt": 1,
        "algorithm": "sft",
        "config": {
            "max_steps": options.steps,
            "batch_size": options.batch_size,
            "learning_rate": 1e-3,
            "context_length": options.context_length,
            "gradient_checkpointing": False,
            "save_steps": 10**9,
        },
        "model_path": str(options.model),
        "train_data_path": str(options.data),
        "checkpoint_dir": str(folder / "checkpoints"),
        "work_dir": str(folder),
        "attempt_dir": str(folder),
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    RunWatcher.on_step_end, RunWatcher.on_log = timed_step_end, timed_log  # type: ignore[method-assign,assignment]
    try:
        code = run_attempt(folder, {})
    finally:
        RunWatcher.on_step_end, RunWatcher.on_log = step_end, log  # type: ignore[method-assign]
    result = json.loads((folder / "result.json").read_text())
    if code != 0:
        raise SystemExit(f"the run failed: {result['message']}")
    return times, result["final_metrics"]["loss"]


def own(hook: Callable[..., None], *args: Any, **kwargs: Any) -> float:
    """Seconds of processor time in one hook of the platform."""
    began = time.process_time()
    hook(*args, **kwargs)
    return time.process_time() - began


def per_step(times: Times) -> tuple[float, float]:
    """Median processor and wall milliseconds between two step ends."""
    kept = times[WARM_UP_STEPS:]
    pairs = list(pairwise(kept))
    return tuple(statistics.median(b[i] - a[i] for a, b in pairs) * 1e3 for i in (0, 1))  # type: ignore[return-value]


@contextlib.contextmanager
def quiet() -> Any:
    """Send standard output to nowhere, also that of `os.write`."""
    saved = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


def main() -> None:
    """Run the rounds and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--model",
        type=Path,
        default=None,
        help="a model folder; left out, the arithmetic model is made",
    )
    parser.add_argument("--data", type=Path, default=ROOT / "datasets" / "arithmetic_sft.jsonl")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--context-length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print figures for a program")
    parser.add_argument(
        "--bare-only", action="store_true", help="run the bare script once and print its steps/s"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, list[tuple[float, float]]] = {"bare TRL": [], "platform": []}
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as root:
        if options.model is None:
            options.model = Path(root) / "arithmetic"
            make("arithmetic", options.model)
        if options.bare_only:
            with quiet():
                ends = [wall for _, wall in bare(options, Path(root))[0][WARM_UP_STEPS:]]
            print((len(ends) - 1) / (ends[-1] - ends[0]))
            return
        for number in range(options.rounds):
            order = [("bare TRL", bare), ("platform", platform)]
            for name, run in order if number % 2 == 0 else reversed(order):
                folder = Path(root) / f"{name.split()[0]}{number}"
                folder.mkdir()
                gc.collect()
                with quiet():
                    times, losses[name] = run(options, folder)
                figures[name].append(per_step(times))
                print(
                    f"round {number + 1}: {name:10s} {figures[name][-1][0]:8.2f} ms processor a step",
                    flush=True,
                    file=sys.stderr,
                )
    medians = {
        n: [statistics.median(f[i] for f in fs) for i in (0, 1)] for n, fs in figures.items()
    }
    hooks = 2 * statistics.fmean(OWN) * 1e3
    if options.json:
        figures_of = {name: {"cpu": cpu, "wall": wall} for name, (cpu, wall) in medians.items()}
        print(json.dumps({**figures_of, "hooks": hooks, "losses": losses}))
        return
    for name, (cpu, wall) in medians.items():
        print(
            f"{name:10s} {cpu:8.2f} ms processor, {wall:8.2f} ms wall a step; last loss {losses[name]:.6f}"
        )
    print(
        f"inside the platform's hooks: {hooks:.3f} ms a step, {hooks / medians['bare TRL'][0]:.2%} of a bare step"
    )
    for i, what in ((0, "processor"), (1, "wall")):
        print(
            f"platform / bare, {what} time a step: {medians['platform'][i] / medians['bare TRL'][i]:.4f}"
        )


if __name__ == "__main__":
    main()
