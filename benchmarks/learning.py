"""Whether each algorithm truly learns: two-digit additions from a model that SFT left at one right answer in four.

    python benchmarks/learning.py [--seeds 42,1,2] [--only grpo,gspo] [--results FILE] [--work DIR]

For each seed SFT ends by `stop_metric: eval_accuracy` at 0.25. From its last checkpoint the runs of RUNS go on, `self_play`
from that of `ppo`. All of it passes through the trainers and a rules service of its own, on one core; what is measured is
`eval_accuracy`: greedy answers to 400 additions that no run has trained on. `core_share` is how much of one core a run got:
on a busy machine wall time is longer than the work takes. `flaky` is grpo with a judge that fails 30 % of its calls for
good, `steady` the same judge without failures, `silent` one that always fails. Runs that are in the file already are
replaced. What came of it: docs/learning.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# ruff: noqa: E402 - the environment must be set before the libraries are imported
from benchmarks.page import machine
from services.gpu_agent.trainers.entry import run_attempt
from services.gpu_agent.trainers.model_zoo.__main__ import make
from tests.integration.reward.conftest import Service
from tests.provider.process import MockProvider
from tests.provider.server import KEY

RESULTS = ROOT / "benchmarks" / "results" / "learning.json"
GOAL, GOAL_SECONDS = 0.8, 120.0
EVALUATED = 400
SHARED = {
    "gradient_checkpointing": False,
    "adam_beta2": 0.98,
    "lr_scheduler_type": "constant_with_warmup",
    "context_length": 64,
    "logging_steps": 1,
    "save_steps": 1000,
    "eval_generate": True,
    "eval_samples": EVALUATED,
}
SFT = SHARED | {
    "batch_size": 64,
    "learning_rate": 2e-3,
    "warmup_steps": 50,
    "num_epochs": 30,
    "eval_steps": 10,
    "stop_metric": "eval_accuracy",
    "stop_value": 0.25,
}
ROLLOUT = SHARED | {
    "batch_size": 64,
    "rollout_n": 4,
    "learning_rate": 6e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 5,
    "max_completion_length": 8,
    "kl_coef": 0.0,
    "eval_steps": 10,
    "max_steps": 160,
    "stop_metric": "eval_accuracy",
    "stop_value": 0.82,
}
MATH = {"reward_fn_type": "math_verify"}
VOTE = {"reward_fn_type": "self_play"}
JUDGE = {
    "reward_model_type": "api",
    "min_valid_reward_rate": 0.5,
    "max_steps": 240,
    "eval_steps": 20,
}
"""Verdicts that are missing make a step learn from less, not from zeros: both runs get the steps to arrive."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run from SFT's checkpoint; `faults` is how its judge fails, where it has one."""

    name: str
    algorithm: str
    config: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, float] | None = None
    after: str | None = None
    """The run whose last checkpoint it goes on from; None: SFT's."""


RUNS: Sequence[Run] = (
    Run("grpo", "grpo", MATH),
    Run(
        "gspo",
        "gspo",
        {
            "rewards": [
                {"name": "math", "weight": 1.0, "required": True, **MATH},
                {"name": "vote", "weight": 0.05, **VOTE},
            ],
            "learning_rate": 4e-4,
        },
    ),
    Run(
        "ppo",
        "ppo",
        # its baseline is the value head, not the other completions of a prompt: as many completions of more prompts
        MATH | {"batch_size": 256, "rollout_n": 1, "learning_rate": 4e-4, "ppo_minibatches": 2, "ppo_epochs": 1, "kl_coef": 0.01,
                "vf_coef": 0.5, "gae_lambda": 1.0},
    ),
    # no answers are known to it: it can only sharpen what the policy knows, so it begins where most votes are right, and
    # stays close to its start; from one right answer in four, or with a large step, it comes to agree on wrong ones
    Run(
        "self_play",
        "gspo",
        VOTE | {"batch_size": 32, "rollout_n": 8, "learning_rate": 1e-5, "kl_coef": 0.02, "max_steps": 40, "stop_value": 1.0},
        after="ppo",
    ),
    Run("steady", "grpo", JUDGE, {}),
    Run("flaky", "grpo", JUDGE, {"filter": 0.3}),
    Run("silent", "grpo", JUDGE, {"filter": 1.0}),
)  # fmt: skip


@dataclass
class Bench:
    """Where everything lies, and the services that runs ask."""

    work: Path
    rules: Service
    model: Path

    def attempt(
        self, job: str, algorithm: str, model: str, config: dict[str, Any], **fields: Any
    ) -> dict[str, Any]:
        """Run one attempt in this process; return its curve and how it ended."""
        work = self.work / job
        attempt_dir = Path(tempfile.mkdtemp(dir=_made(work), prefix="attempt-"))
        data = "sft" if algorithm == "sft" else "grpo"
        spec = {
            "job": job,
            "attempt": 1,
            "algorithm": algorithm,
            "config": config,
            "model_path": model,
            "train_data_path": str(ROOT / "datasets" / f"arithmetic_{data}.jsonl"),
            "eval_data_path": str(ROOT / "datasets" / "arithmetic_eval.jsonl"),
            "checkpoint_dir": str(attempt_dir / "checkpoints"),
            "work_dir": str(work),
            "attempt_dir": str(attempt_dir),
            "rules_file": str(self.rules.home / "run" / "reward.json"),
        } | fields
        (attempt_dir / "spec.json").write_text(json.dumps(spec))
        wall, processor = time.monotonic(), time.process_time()
        run_attempt(attempt_dir, {"reward_model_api_key": KEY})
        share = (time.process_time() - processor) / (time.monotonic() - wall)
        lines = (attempt_dir / "events.jsonl").read_text().splitlines()
        result = json.loads((attempt_dir / "result.json").read_text())
        return _told([json.loads(line) for line in lines], result) | {"core_share": round(share, 2)}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _told(events: list[dict[str, Any]], result: dict[str, Any]) -> dict[str, Any]:
    """Return the curve: step, seconds since training began, held-out accuracy; and the mean of each figure's last steps."""
    began = next((e["t"] for e in events if e["type"] == "phase" and e["name"] == "training"), 0.0)
    metrics = [e for e in events if e["type"] == "metric"]
    curve = [
        [e["step"], round(e["t"] - began, 1), e["metrics"]["eval_accuracy"]]
        for e in metrics
        if "eval_accuracy" in e["metrics"]
    ]
    steps = [e["metrics"] for e in metrics if "loss" in e["metrics"]]
    figures = {}
    for name in ("reward", "win_rate", "valid_reward_rate", "reward_latency_s"):
        values = [m[name] for m in steps if m.get(name) is not None]
        if values:
            figures[name] = [round(values[0], 4), round(sum(values[-5:]) / len(values[-5:]), 4)]
    return {
        "outcome": result["outcome"],
        "reason": result["reason"],
        "message": result["message"],
        "steps": result["step"],
        "curve": curve,
        "first_and_last": figures,
        "checkpoint": result["last_checkpoint"],
    }


def start(bench: Bench, seed: int) -> dict[str, Any]:
    """Return SFT's run of this seed: the one that is there, or a new one."""
    kept = bench.work / f"sft-{seed}.json"
    if not kept.exists():
        told = bench.attempt(f"sft-{seed}", "sft", str(bench.model), SFT | {"seed": seed})
        kept.write_text(json.dumps(told))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def before_of(bench: Bench, run: Run, seed: int, sft: dict[str, Any]) -> dict[str, Any]:
    """Return the run to go on from, with its checkpoint. Raises FileNotFoundError where it was not run in this folder."""
    if run.after is None:
        return sft
    return {
        "checkpoint": (bench.work / f"{run.after}-{seed}.checkpoint").read_text(),
        "curve": json.loads((bench.work / f"{run.after}-{seed}.curve").read_text()),
    }


def go_on(bench: Bench, run: Run, seed: int, before: dict[str, Any]) -> dict[str, Any]:
    """Run one algorithm from SFT's checkpoint, with a judge of its own where it has one."""
    config = ROLLOUT | run.config | {"seed": seed}
    with ExitStack() as opened:
        fields = {}
        if run.faults is not None:
            provider = opened.enter_context(MockProvider())
            provider.behave(sums=True, faults=run.faults, seed=seed)
            home = Path(tempfile.mkdtemp(dir=bench.work, prefix="central-"))
            central = Service(home, TRAINYARD_REWARD_ALLOW_HTTP_HOSTS="127.0.0.1")
            opened.enter_context(central)
            fields["reward_url"] = central.url
            config["reward_model_api_base"] = provider.base
        told = bench.attempt(
            f"{run.name}-{seed}", run.algorithm, before["checkpoint"], config, **fields
        )
    (bench.work / f"{run.name}-{seed}.checkpoint").write_text(told["checkpoint"] or "")
    (bench.work / f"{run.name}-{seed}.curve").write_text(json.dumps(told["curve"]))
    accuracies = [a for _, _, a in told["curve"]]
    reached = next((s for _, s, a in told["curve"] if a >= GOAL), None)
    own = None if reached is None else round(reached * told["core_share"], 1)
    started = before["curve"][-1][2]
    told.pop("checkpoint")
    return {
        "run": run.name,
        "seed": seed,
        "start": started,
        "best": max(accuracies, default=None),
        "last": accuracies[-1] if accuracies else None,
        "seconds_to_goal": reached,
        "core_seconds_to_goal": own,
        **told,
    }


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    points = " ".join(f"{step}:{accuracy:.1%}" for step, _, accuracy in row["curve"])
    end = row["reason"] or row["outcome"]
    return f"{row['run']:10} seed {row['seed']:3}  from {row['start']:.1%}  {points}  goal after {row['seconds_to_goal']} s ({row.get('core_seconds_to_goal')} s of one core)  {end}"


def main() -> int:
    """Run, print the table, store it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="42,1,2")
    parser.add_argument("--only", default=",".join(run.name for run in RUNS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--work", type=Path, default=None, help="kept: SFT's checkpoints are used again"
    )
    options = parser.parse_args()
    wanted = options.only.split(",")
    work = options.work or Path(tempfile.mkdtemp(prefix="learning-"))
    _made(work)
    if not (work / "model").exists():
        make("arithmetic", work / "model")
    with Service(work / "rules", TRAINYARD_REWARD_RULES_ONLY="true") as rules:
        bench = Bench(work, rules, work / "model")
        for seed in map(int, options.seeds.split(",")):
            before = start(bench, seed)
            row = {"run": "sft", "seed": seed, "start": 0.0, "seconds_to_goal": None}
            store(options.results, row | {k: v for k, v in before.items() if k != "checkpoint"})
            for run in RUNS:
                if run.name in wanted:
                    row = go_on(bench, run, seed, before_of(bench, run, seed, before))
                    store(options.results, row)
    for row in json.loads(options.results.read_text())["runs"]:
        print(line(row), flush=True)
    return 0


def store(file: Path, row: dict[str, Any]) -> None:
    """Put a row into the file, in the place of an older one of the same run and seed."""
    document: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"runs": []}
    key = (row["run"], row["seed"])
    rows = [r for r in document["runs"] if (r["run"], r["seed"]) != key]
    document = {
        "measured": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "sft": SFT,
        "rollout": ROLLOUT,
        "curve": "step, seconds since training began, eval_accuracy over 400 held-out additions",
        "goal": f"eval_accuracy {GOAL:g} within {GOAL_SECONDS:g} s",
        "runs": [*rows, row],
    }
    file.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
