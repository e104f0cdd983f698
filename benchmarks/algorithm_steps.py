"""What the platform costs a step of each algorithm: the platform and the bare script in turn, side by side in one process.

    python benchmarks/algorithm_steps.py [--only dpo,grpo] [--steps 16] [--rounds 3] [--profile]

Compares steps only (checkpoint-0 and saves aside) by processor time, which other load of the machine moves little. The
rules service is a process of its own, as on a host; what it uses is told apart. Then one GRPO run in which every other
step is judged by a function of this process instead: its steps, by wall time, tell what HTTP costs.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# ruff: noqa: E402 - the folder must be known before anything of it is imported
import psutil
import torch

from benchmarks import bare_algorithms as bare
from benchmarks.bare_algorithms import Task
from benchmarks.bare_sft import WARM_UP_STEPS, Clock, Times, quiet
from services.gpu_agent.trainers.entry import run_attempt
from services.gpu_agent.trainers.model_zoo.__main__ import make
from services.gpu_agent.trainers.rewarding import Scorer
from services.gpu_agent.trainers.rollout_report import RolloutReport
from services.gpu_agent.trainers.rollouts import Rollout, Verdict
from services.gpu_agent.trainers.watching import RunWatcher
from tests.integration.reward.conftest import Service

ROWS = 512
HOOKS = ((RunWatcher, "on_step_end"), (RunWatcher, "on_log"), (RolloutReport, "step"), (Scorer, "score"))  # fmt: skip
"""Where the platform does something of its own in every step."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run; tokens and last loss tell whether two runs did the same work."""

    times: Times
    tokens: float
    loss: float


@dataclass
class Bench:
    """Where everything lies, and the service that judges."""

    work: Path
    rules: Service
    models: dict[str, str]
    prompts: Path

    def task(self, algorithm: str, steps: int) -> Task:
        """Return the task of one algorithm."""
        if algorithm in bare.PAIRED:
            data = ROOT / "datasets" / "sales_dpo.jsonl"
            return Task(algorithm, self.models["tiny"], data, steps, 8, 768)
        group = 4 if algorithm == "ppo" else 8  # ppo passes four times over what it wrote
        return Task(algorithm, self.models["arithmetic"], self.prompts, steps, 16, 64, group, 8)

    def platform(self, task: Task) -> Run:
        """Train through `run_attempt`, with its events, log, metrics, watches and rules over HTTP."""
        folder = Path(tempfile.mkdtemp(dir=self.work, prefix="platform-"))
        rolled = {"rollout_n": task.group, "max_completion_length": task.completion, "kl_coef": bare.KL,
                  "reward_fn_type": "math_verify"}  # fmt: skip
        spec = {
            "job": "bench",
            "attempt": 1,
            "algorithm": task.algorithm,
            "config": {
                "max_steps": task.steps,
                "batch_size": task.batch,
                "learning_rate": bare.LEARNING_RATE,
                "context_length": task.context,
                "gradient_checkpointing": False,
                "save_steps": 10**9,
                **({} if task.algorithm in bare.PAIRED else rolled),
            },
            "model_path": task.model,
            "train_data_path": str(task.data),
            "checkpoint_dir": str(folder / "checkpoints"),
            "work_dir": str(folder),
            "attempt_dir": str(folder),
            "rules_file": str(self.rules.home / "run" / "reward.json"),
        }
        (folder / "spec.json").write_text(json.dumps(spec))
        times: Times = []
        step_end = RunWatcher.on_step_end

        def timed(self: RunWatcher, *args: Any, **kwargs: Any) -> None:
            times.append((time.process_time(), time.perf_counter()))
            step_end(self, *args, **kwargs)

        with patch.object(RunWatcher, "on_step_end", timed):
            code = run_attempt(folder, {})
        result = json.loads((folder / "result.json").read_text())
        if code != 0:
            raise SystemExit(f"{task.algorithm} failed: {result['message']}")
        return Run(times, result["final_metrics"]["num_tokens"], result["final_metrics"]["loss"])

    def by_hand(self, task: Task) -> Run:
        """Train as a person would by hand."""
        clock = Clock()
        folder = Path(tempfile.mkdtemp(dir=self.work, prefix="bare-"))
        trainer = bare.build(task, folder, [clock])
        trainer.train()
        last = next(e for e in reversed(trainer.state.log_history) if "loss" in e)
        return Run(clock.times, last["num_tokens"], last["loss"])

    def service_seconds(self) -> float:
        """Return the processor time of the rules service so far."""
        used = psutil.Process(self.rules.process.pid).cpu_times()
        return float(used.user + used.system)


@contextmanager
def watched(own: dict[str, float]) -> Iterator[None]:
    """Add up the processor seconds inside the platform's own hooks, by name."""
    kept = [(owner, name, getattr(owner, name)) for owner, name in HOOKS]

    def timed(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return hook(*args, **kwargs)
            finally:
                own[name] = own.get(name, 0.0) + time.process_time() - began

        return call

    try:
        for owner, name, hook in kept:
            setattr(owner, name, timed(f"{owner.__name__}.{name}", hook))
        yield
    finally:
        for owner, name, hook in kept:
            setattr(owner, name, hook)


def compare(bench: Bench, algorithm: str, steps: int, rounds: int) -> dict[str, Any]:
    """Return milliseconds a step of both, and what the platform's hooks and the service took.

    Both do the same work in step n of every round, and other load only ever adds time: a step counts with its least.
    """
    task, own, service = bench.task(algorithm, steps), {}, 0.0
    found: dict[str, list[list[float]]] = {"bare": [], "platform": []}
    last: dict[str, Run] = {}
    for number in range(rounds):
        order = [("bare", bench.by_hand), ("platform", bench.platform)]
        for name, run in order if number % 2 == 0 else reversed(order):
            gc.collect()
            began = bench.service_seconds()
            with quiet(), watched(own):
                last[name] = run(task)
            kept = pairwise(last[name].times[WARM_UP_STEPS:])
            found[name].append([(b[0] - a[0]) * 1e3 for a, b in kept])
            service += bench.service_seconds() - began
    each = 1e3 / (steps * rounds)
    return {
        **{name: {"cpu": statistics.fmean(map(min, zip(*of_rounds, strict=True))),
                  "rounds": [round(statistics.fmean(of_steps), 1) for of_steps in of_rounds],
                  "tokens": last[name].tokens, "loss": last[name].loss}
           for name, of_rounds in found.items()},
        "own": {name: seconds * each for name, seconds in own.items()},
        "service": service * each,
    }  # fmt: skip


def over_http(bench: Bench, steps: int) -> dict[str, Any]:
    """Return milliseconds of GRPO steps judged over HTTP and by a function here, every other step of one run."""
    ask, calls = Scorer.score, 0

    def alternate(self: Scorer, rollouts: Sequence[Rollout], *args: Any) -> list[Verdict]:
        nonlocal calls
        calls += 1
        if calls % 2:
            return ask(self, rollouts, *args)
        self.seconds = 0.0
        return [Verdict(bare.rule(r.completion, r.prompt.solution or "")) for r in rollouts]

    before = bench.service_seconds()
    with quiet(), patch.object(Scorer, "score", alternate):
        times = bench.platform(bench.task("grpo", steps)).times
    service = (bench.service_seconds() - before) * 1e3 / (steps / 2)
    # the interval between the ends of step n and n + 1 holds call n + 1
    between = [[b[i] - a[i] for i in (0, 1)] for a, b in pairwise(times)]
    http, here = between[WARM_UP_STEPS::2], between[WARM_UP_STEPS + 1 :: 2]
    if WARM_UP_STEPS % 2 == 0:
        http, here = here, http
    parts = {"http": http, "here": here}
    return {"service": service} | {
        name: {how: statistics.median(x[i] for x in part) * 1e3 for i, how in ((0, "cpu"), (1, "wall"))}
        for name, part in parts.items()
    }  # fmt: skip


def turns(algorithm: str, rounds: int) -> int:
    """Return the rounds of one algorithm: short steps take more of them."""
    return 2 * rounds if algorithm in bare.PAIRED and rounds > 1 else rounds


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default=",".join((*bare.ALGORITHMS, "http")))
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--profile", action="store_true", help="print what both call, and compare nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        work = Path(root)
        models = {kind: str(work / kind) for kind in ("tiny", "arithmetic")}
        for kind, folder in models.items():
            make(kind, Path(folder))
        prompts = work / "prompts.jsonl"
        lines = (ROOT / "datasets" / "arithmetic_grpo.jsonl").read_text().splitlines()[:ROWS]
        prompts.write_text("\n".join(lines) + "\n")
        with Service(work / "rules", TRAINYARD_REWARD_RULES_ONLY="true") as rules:
            bench = Bench(work, rules, models, prompts)
            for name in options.only.split(","):
                if name == "http":
                    found[name] = over_http(bench, options.steps * options.rounds)
                elif options.profile:
                    profile(bench, name, options.steps)
                else:
                    found[name] = compare(bench, name, options.steps, turns(name, options.rounds))
                print(name, json.dumps(found.get(name)), file=sys.stderr, flush=True)
    print(json.dumps(found))


def profile(bench: Bench, algorithm: str, steps: int) -> None:
    """Print where a platform run and a bare one spend their time."""
    for run in (bench.by_hand, bench.platform):
        profiler = cProfile.Profile(time.process_time)
        with quiet():
            profiler.runcall(run, bench.task(algorithm, steps))
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(60)


if __name__ == "__main__":
    main()
