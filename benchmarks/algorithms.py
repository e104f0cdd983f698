"""Every algorithm beside the bare trainer: time of a step, GRPO's rewards over HTTP, and the start of a job."""

from __future__ import annotations

import json
import time
from typing import Any

from benchmarks.bare_algorithms import ALGORITHMS, PAIRED, ROOT, Task, first_step
from benchmarks.embedded import make_model, running, script, wait_warm
from benchmarks.first_step import GOAL_STEP_SECONDS, start
from benchmarks.row import Row, percentile, seconds
from benchmarks.steps import GOAL

GOAL_HTTP = 1.05


def measure(quick: bool) -> list[Row]:
    """Return the rows of steps, of HTTP rewards and of starts."""
    steps, rounds = (9, 1) if quick else (16, 3)
    found = json.loads(script("algorithm_steps.py", "--steps", str(steps), "--rounds", str(rounds)))
    rows = [_step(name, found[name], steps) for name in ALGORITHMS]
    return rows + _http(found["http"]) + _starts(quick)


def _step(algorithm: str, found: dict[str, Any], steps: int) -> Row:
    ours, bare = found["platform"], found["bare"]
    ratio = bare["cpu"] / ours["cpu"]
    hooks = sum(found["own"].values())
    parts = ", ".join(f"{name} {ms:.2f}" for name, ms in found["own"].items())
    listed, by_hand = (", ".join(map(str, side["rounds"])) for side in (ours, bare))
    if algorithm == "ppo":
        baseline = (
            "baseline: the platform's own PPO class (TRL has none) without watcher, report and reward service, judged by a "
            "function in the process: what the platform adds to the trainer, not what another PPO would take"
        )
    else:
        judged = "" if algorithm in PAIRED else ", judged by a function in the process"
        baseline = f"baseline: the TRL script by hand{judged}"
    service = "" if algorithm in PAIRED else f"; the rules service, a process of its own, took {found['service']:.1f} ms a step beside that"  # fmt: skip
    return Row(
        f"{algorithm}: training steps a second of processor time, in one process",
        f"{1e3 / ours['cpu']:.2f}/s",
        f"{1e3 / bare['cpu']:.2f}/s",
        f"{ratio:.3f}",
        f"≥ {GOAL}",
        ratio >= GOAL,
        f"{_size(algorithm)}; one thread, mean of the steps to {steps}, each with its least processor time of the rounds, which take turns "
        f"(mean ms of each round: {listed}; bare: {by_hand}), since other load of the machine only adds to it; tokens and last loss of a run "
        f"{ours['tokens']:.0f}, {ours['loss']:.6f}, bare {bare['tokens']:.0f}, {bare['loss']:.6f}; inside the platform's own hooks {hooks:.2f} ms a step ({hooks / bare['cpu']:.2%}: "
        f"{parts}){service}; {baseline}",
    )


def _size(algorithm: str) -> str:
    if algorithm in PAIRED:
        return "tiny model, 8 pairs of sales_dpo.jsonl a step"
    group = 4 if algorithm == "ppo" else 8
    return f"arithmetic model, 16 prompts a step with {group} completions of at most 8 tokens each"


def _http(found: dict[str, Any]) -> list[Row]:
    http, here, service = found["http"], found["here"], found["service"]
    work = http["cpu"] + service
    rows = []
    for how, ours, baseline, note in (
        ("processor time", work, here["cpu"], f"of the trainer ({http['cpu']:.1f} ms) and of the service ({service:.1f} ms) together"),
        ("wall time", http["wall"], here["wall"], "waiting for the service included"),
    ):  # fmt: skip
        rows.append(
            Row(
                f"GRPO step, rewards over HTTP, {how}",
                f"{ours:.1f} ms",
                f"{baseline:.1f} ms",
                f"{ours / baseline:.3f}",
                f"≤ {GOAL_HTTP}",
                ours / baseline <= GOAL_HTTP,
                f"128 completions judged by the host's reward service, a process, or by a function in the trainer, every other step of one run; medians; {note}",
            )
        )
    return rows


def _starts(quick: bool) -> list[Row]:
    count = 2 if quick else 5
    rows = []
    with running(rewards=True) as (stack, client):
        model = str(make_model(stack.home / "tiny"))
        wait_warm(stack)
        for algorithm in ALGORITHMS:
            task = first_step(algorithm, model)
            start(stack, client, body(task))
            runs = [start(stack, client, body(task)) for _ in range(count)]
            firsts = [run.first_step for run in runs]
            began = time.perf_counter()
            script("bare_algorithms.py", algorithm, model)
            fresh = time.perf_counter() - began
            p95 = percentile(firsts, 0.95)
            process = percentile([run.process for run in runs], 0.5)
            script_of = "the same class" if algorithm == "ppo" else "the same TRL script"
            judged = "" if algorithm in PAIRED else ", rewards by math_verify over HTTP"
            rows.append(
                Row(
                    f"{algorithm}: submit → first training step (warm)",
                    seconds(firsts),
                    f"{fresh:.2f} s",
                    f"{percentile(firsts, 0.5) / fresh:.3f}",
                    f"p95 ≤ {GOAL_STEP_SECONDS} s",
                    p95 <= GOAL_STEP_SECONDS,
                    f"tiny model, examples of the guide{judged}; the trainer process is there after {process * 1e3:.0f} ms (median); "
                    f"baseline: {script_of} as a fresh process to its end of step 1, wall time",
                )
            )
    return rows


def body(task: Task) -> dict[str, Any]:
    """Return the job of a task."""
    rolled = {
        "rollout_n": task.group,
        "max_completion_length": task.completion,
        "reward_fn_type": "math_verify",
    }
    return {
        "name": "bench",
        "algorithm": task.algorithm,
        "model_path": task.model,
        "train_data_path": str(task.data.relative_to(ROOT)),
        "num_gpus": 1,
        "learning_rate": 1e-4,
        "batch_size": task.batch,
        "context_length": task.context,
        "max_steps": task.steps,
        "gradient_checkpointing": False,
        **({} if task.algorithm in PAIRED else rolled),
    }
