"""Steps per second through the platform over a bare TRL script: as a job of a whole stack, and in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.embedded import ROOT, job, running, script
from benchmarks.row import Row, percentile
from trainyard import Client

GOAL = 0.98
BATCH, CONTEXT = 64, 64
DATA = ROOT / "datasets" / "arithmetic_sft.jsonl"
WARM_UP_STEPS = 5


def measure(quick: bool) -> list[Row]:
    """Take turns with the bare script as a process of its own; then both in one process, by processor time."""
    steps, rounds = (30, 1) if quick else (100, 3)
    ours, bare = [], []
    with running() as (stack, client):
        model = _model(stack.home / "arithmetic")
        arguments = ("--model", str(model), "--steps", str(steps), "--batch-size", str(BATCH))
        for number in range(rounds):
            turns = [(bare, lambda: float(script("bare_sft.py", "--bare-only", *arguments))),
                     (ours, lambda: _job(client, model, steps))]  # fmt: skip
            for found, run in turns if number % 2 == 0 else reversed(turns):
                found.append(run())
    ratio = percentile(ours, 0.5) / percentile(bare, 0.5)
    return [
        Row(
            "training steps a second, a job of the stack",
            f"{percentile(ours, 0.5):.2f}/s",
            f"{percentile(bare, 0.5):.2f}/s",
            f"{ratio:.3f}",
            f"≥ {GOAL}",
            ratio >= GOAL,
            f"arithmetic model, batch {BATCH}, one thread, wall time between the ends of step {WARM_UP_STEPS} and {steps}, median of "
            f"{rounds} turns (all: {_list(ours)}); the whole stack runs beside it; baseline: the same TRL script by hand as its own "
            f"process while the stack idles (all: {_list(bare)})",
        ),
        _in_process(quick),
    ]


def _in_process(quick: bool) -> Row:
    steps, rounds = ("60", "1") if quick else ("60", "3")
    found = json.loads(script("bare_sft.py", "--steps", steps, "--rounds", rounds, "--json"))
    bare, ours = found["bare TRL"], found["platform"]
    ratio = bare["cpu"] / ours["cpu"]
    return Row(
        "training steps a second of processor time, in one process",
        f"{1e3 / ours['cpu']:.2f}/s",
        f"{1e3 / bare['cpu']:.2f}/s",
        f"{ratio:.3f}",
        f"≥ {GOAL}",
        ratio >= GOAL,
        f"median step of {steps} in {rounds} rounds in turn; inside the platform's own hooks {found['hooks']:.3f} ms a step "
        f"({found['hooks'] / bare['cpu']:.2%})",
    )


def _job(client: Client, model: Path, steps: int) -> float:
    """Return the steps a second of one job, by the time that its trainer gave each."""
    body = job(model, steps) | {
        "train_data_path": str(DATA),
        "batch_size": BATCH,
        "context_length": CONTEXT,
        "learning_rate": 1e-3,
        "save_steps": steps,
    }
    made = client.jobs.submit(body)
    ended = client.jobs.wait(made.uuid, 200)
    if ended.status != "COMPLETED":
        raise RuntimeError(f"the run failed: {ended.message}")
    times = [float(t or 0) for t in client.jobs.metrics(made.uuid, ["loss"], x="time").x]
    kept = times[WARM_UP_STEPS:]
    return (len(kept) - 1) / (kept[-1] - kept[0])


def _model(folder: Path) -> Path:
    module = "services.gpu_agent.trainers.model_zoo"
    argv = [sys.executable, "-m", module, "arithmetic", "--out", str(folder)]
    subprocess.run(argv, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=120)
    return folder


def _list(rates: list[float]) -> str:
    return ", ".join(f"{rate:.2f}" for rate in rates)
