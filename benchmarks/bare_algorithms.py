"""What a person would write by hand for each algorithm: TRL alone, a rule in the same process, no saves.

    python benchmarks/bare_algorithms.py dpo|reward_model|grpo|gspo|ppo MODEL

run as a script it trains one step in this fresh process. TRL 1.16 has no PPO: there it is the platform's own class, with
nothing of the platform around it.
"""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# ruff: noqa: PLC0415 - each algorithm imports what it needs, as a script of its own would
PAIRED, GROUPED = ("dpo", "reward_model"), ("grpo", "gspo")
ALGORITHMS = (*PAIRED, *GROUPED, "ppo")
LEARNING_RATE, BETA, KL = 1e-4, 0.1, 0.001
GSPO = {"importance_sampling_level": "sequence", "loss_type": "grpo"}
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained, on what and in what batches."""

    algorithm: str
    model: str
    data: Path
    steps: int
    batch: int
    """Pairs of a step; for the algorithms that write completions prompts."""
    context: int
    group: int = 1
    """Completions of one prompt."""
    completion: int = 0
    """Most tokens of one completion."""


def first_step(algorithm: str, model: str) -> Task:
    """Return the task of a start: one small step on the examples of the guide."""
    if algorithm in PAIRED:
        return Task(algorithm, model, ROOT / "datasets" / "sales_dpo.jsonl", 1, 2, 512)
    return Task(algorithm, model, ROOT / "datasets" / "sales_grpo.jsonl", 1, 2, 512, 4, 16)


def rule(completion: str, solution: str) -> float:
    """Return 1.0 where the last boxed answer is the solution's number, else 0.0; `math_verify` says the same of numbers."""
    found = _BOXED.findall(completion)
    try:
        return float(bool(found) and float(found[-1]) == float(solution))
    except ValueError:
        return 0.0


def build(task: Task, folder: Path, callbacks: Sequence[Any] = ()) -> Any:
    """Return a trainer that is ready for `train()`."""
    if task.algorithm == "dpo":
        from trl import DPOConfig, DPOTrainer

        args = DPOConfig(**_arguments(task, folder), max_length=task.context, beta=BETA)
        return DPOTrainer(
            task.model, args=args, train_dataset=_pairs(task, folder), callbacks=list(callbacks)
        )
    if task.algorithm == "reward_model":
        from trl import RewardConfig, RewardTrainer

        args = RewardConfig(**_arguments(task, folder), max_length=task.context)
        return RewardTrainer(
            task.model, args=args, train_dataset=_pairs(task, folder), callbacks=list(callbacks)
        )
    return _ppo(task, folder, callbacks) if task.algorithm == "ppo" else _group(task, folder, callbacks)  # fmt: skip


def _group(task: Task, folder: Path, callbacks: Sequence[Any]) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    def reward(completions: Any, solution: Any, **_: Any) -> list[float]:
        return [rule(c[0]["content"], s) for c, s in zip(completions, solution, strict=True)]

    rows = _rows(task, folder).map(lambda row: {"prompt": [_said("user", row["prompt"])]})
    args = GRPOConfig(
        **_arguments(task, folder) | {"per_device_train_batch_size": task.batch * task.group},
        num_generations=task.group,
        max_completion_length=task.completion,
        beta=KL,
        **(GSPO if task.algorithm == "gspo" else {}),
    )
    return GRPOTrainer(task.model, reward, args=args, train_dataset=rows, callbacks=list(callbacks))


def _ppo(task: Task, folder: Path, callbacks: Sequence[Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

    from services.gpu_agent.trainers.ppo_model import PolicyWithValue
    from services.gpu_agent.trainers.ppo_reference import Reference
    from services.gpu_agent.trainers.ppo_rollout import Sampler
    from services.gpu_agent.trainers.ppo_trainer import PpoTrainer
    from services.gpu_agent.trainers.rollouts import RolloutPrompt, Verdict
    from services.gpu_agent.trainers.settings import PpoSettings

    tokenizer = AutoTokenizer.from_pretrained(task.model)
    policy = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    rows = [json.loads(line) for line in task.data.read_text().splitlines()]
    asked = [[_said("user", row["prompt"])] for row in rows]
    texts = [tokenizer.apply_chat_template(a, tokenize=False, add_generation_prompt=True) for a in asked]  # fmt: skip
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    chosen = PpoSettings(batch_size=task.batch, rollout_n=task.group, kl_coef=KL)
    trainer: Any = PpoTrainer(
        model=PolicyWithValue(policy),
        args=TrainingArguments(**_arguments(task, folder), remove_unused_columns=False),
        train_dataset=[{"index": n} for n in range(len(rows))],  # type: ignore[arg-type]
        processing_class=tokenizer,
        data_collator=lambda rows: {"index": torch.tensor([row["index"] for row in rows])},
        callbacks=list(callbacks),
    )
    trainer.context, trainer.settings = SimpleNamespace(give_way=lambda: None), chosen
    trainer.prompts = [
        RolloutPrompt(n, text, tuple(i), row["prompt"], row["solution"])
        for n, (text, i, row) in enumerate(zip(texts, ids, rows, strict=True))
    ]
    trainer.reference = Reference(policy, copy.deepcopy(policy).requires_grad_(False).eval(), None)
    trainer.needs_scores, trainer.micro_batch = False, task.batch * task.group
    trainer.sampler = Sampler(
        policy, tokenizer, temperature=1.0, top_p=1.0, max_completion=task.completion,
        micro_batch=task.batch * task.group, should_stop=lambda: False,
    )  # fmt: skip
    trainer.judge = lambda rollouts: [
        Verdict(rule(r.completion, r.prompt.solution or "")) for r in rollouts
    ]
    trainer.report = lambda *_: {}
    trainer._watcher = SimpleNamespace(loss_lost=False)
    return trainer


def _arguments(task: Task, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": task.steps,
        "per_device_train_batch_size": task.batch,
        "learning_rate": LEARNING_RATE,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 42,
    }


def _rows(task: Task, folder: Path) -> Any:
    from datasets import load_dataset

    return load_dataset(
        "json", data_files=str(task.data), split="train", cache_dir=str(folder / "cache")
    )


def _pairs(task: Task, folder: Path) -> Any:
    def talk(row: dict[str, str]) -> dict[str, Any]:
        answers = {name: [_said("assistant", row[name])] for name in ("chosen", "rejected")}
        return {"prompt": [_said("user", row["prompt"])], **answers}

    return _rows(task, folder).map(talk)


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def main() -> None:
    """Train one step."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        build(first_step(sys.argv[1], sys.argv[2]), Path(folder)).train()


if __name__ == "__main__":
    main()
