"""`trainyard demo`: from an empty machine to a model that has learned, by examples and then by reward."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from shared.settings import PROJECT_ROOT, Settings
from trainyard.cli.follow import follow, format_metrics
from trainyard.cli.output import fail, out, user_errors
from trainyard.client import Client
from trainyard.models import Job

READY_SECONDS = 90.0
TASK: dict[str, Any] = {
    "eval_data_path": "datasets/arithmetic_eval.jsonl",
    "num_gpus": 1,
    "gradient_checkpointing": False,
    "context_length": 64,
    "adam_beta2": 0.98,
    "weight_decay": 0.0,
    "eval_generate": True,
    "eval_samples": 200,
    "stop_metric": "eval_accuracy",
    "reward_fn_type": "math_verify",
}
"""What both stages of the arithmetic demo share."""
LEARN: dict[str, Any] = TASK | {
    "name": "demo 1/2: SFT learns the form",
    "description": "A 0.8 M parameter model learns two-digit addition from examples, to about 30 %.",
    "algorithm": "sft",
    "train_data_path": "datasets/arithmetic_sft.jsonl",
    "num_epochs": 40,
    "max_steps": 900,
    "batch_size": 64,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 50,
    "eval_steps": 10,
    "save_steps": 300,
    "logging_steps": 5,
    "stop_value": 0.25,
}
REINFORCE: dict[str, Any] = TASK | {
    "name": "demo 2/2: GRPO finds the answers",
    "description": "The same model goes on by trying, rewarded for right answers only, to above 80 %.",
    "algorithm": "grpo",
    "train_data_path": "datasets/arithmetic_grpo.jsonl",
    "max_steps": 160,
    "batch_size": 64,
    "rollout_n": 4,
    "max_completion_length": 8,
    "learning_rate": 6e-4,
    "warmup_steps": 5,
    "kl_coef": 0.0,
    "eval_steps": 10,
    "save_steps": 80,
    "stop_value": 0.82,
}
SMOLLM2: dict[str, Any] = {
    "name": "demo: SmolLM2-135M on sales dialogues",
    "algorithm": "sft",
    "train_data_path": "datasets/sales_sft.jsonl",
    "num_gpus": 1,
    "max_steps": 20,
    "gradient_checkpointing": False,
    "precision": "bf16",
    "batch_size": 2,
    "context_length": 256,
    "learning_rate": 2e-4,
    "lora_enabled": True,
    "lora_rank": 16,
    "lora_alpha": 32,
    "save_steps": 10,
}


def demo(
    model: str = typer.Option("arithmetic", envvar="MODEL", help="arithmetic or smollm2."),
    keep: bool = typer.Option(False, envvar="KEEP", help="Keep serving afterwards."),
) -> None:
    """Start the stack, train a small model in two stages, watch it, print its checkpoints."""
    if model not in {"arithmetic", "smollm2"}:
        raise fail(f"MODEL={model!r}: choose arithmetic or smollm2.")
    settings = Settings()
    folder = settings.home / "models" / model
    with user_errors(), _stack(settings, keep=keep) as client:
        _make_model(model, folder)
        if model == "smollm2":
            _run(client, SMOLLM2 | {"model_path": str(folder)})
            return
        learned = client.jobs.submit(LEARN | {"model_path": str(folder)})
        chained = REINFORCE | {"model_path": f"job:{learned.uuid}", "depends_on": [learned.uuid]}
        reinforced = client.jobs.submit(chained)
        out.print(f"Submitted {learned.uuid} and, behind it, {reinforced.uuid}")
        for job in (learned, reinforced):
            out.print(job.name, style="bold", markup=False)
            _report(client, follow(client, job.uuid))


def _run(client: Client, body: dict[str, Any]) -> None:
    job = client.jobs.submit(body)
    out.print(f"Submitted {job.uuid}; the same as: POST {client.url}/api/v1/jobs/")
    _report(client, follow(client, job.uuid))


@contextmanager
def _stack(settings: Settings, *, keep: bool) -> Iterator[Client]:
    client = Client()
    if client.is_ready():
        out.print(f"Using the stack that runs at {client.url}")
        yield client
        return
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "trainyard.cli.main", "up"], stdout=subprocess.DEVNULL
    )
    try:
        client = _wait_ready(process, settings)
        out.print(f"The stack is ready at {client.url} after {time.monotonic() - started:.1f} s")
        yield client
        if keep:
            out.print("Still serving; Ctrl-C stops it.")
            process.wait()
    except KeyboardInterrupt:
        out.print("\nStopping.")
    finally:
        client.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def _wait_ready(process: subprocess.Popen[bytes], settings: Settings) -> Client:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise fail("The stack did not start; the reason is printed above.")
        if (settings.home / "run" / "stack.json").exists():
            client = Client()
            if client.is_ready():
                return client
            client.close()
        time.sleep(0.1)
    raise fail(f"The stack is not ready after {READY_SECONDS:g} s; see {settings.home / 'logs'}.")


def _make_model(kind: str, folder: Path) -> None:
    argv = [
        sys.executable, "-P", "-m", "services.gpu_agent.trainers.model_zoo", kind,
        "--out", str(folder),
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    if subprocess.run(argv, check=False, env=env, cwd=PROJECT_ROOT).returncode != 0:
        raise fail("The model could not be made; the reason is printed above.")
    out.print(f"Model: {folder}", markup=False)


def _report(client: Client, job: Job) -> None:
    took = (
        (job.finished_at - job.started_at).total_seconds()
        if job.finished_at and job.started_at
        else 0
    )
    out.print(
        f"{job.status} after {took:.0f} s  {format_metrics(job.final_metrics or {})}", markup=False
    )
    if job.status != "COMPLETED":
        raise fail(f"{job.message or job.reason}. {job.hint or ''}")
    kept = client.jobs.checkpoints(job.uuid)
    for entry in kept:
        marks = " ".join(m for m, on in (("best", entry.best), ("last", entry.last)) if on)
        out.print(f"checkpoint {entry.path} {marks}", markup=False)
    last = next((c for c in kept if c.last), kept[-1])
    loader = "AutoPeftModelForCausalLM" if last.kind == "lora" else "AutoModelForCausalLM"
    package = "peft" if last.kind == "lora" else "transformers"
    out.print("Load it with:")
    out.print(f"  from {package} import {loader}", markup=False)
    out.print(f"  model = {loader}.from_pretrained({last.path!r})", markup=False)
