"""What every trainer does around its own part: prepare the process, find where to resume, load, watch, train."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic

import torch
from datasets import disable_progress_bars
from transformers import PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging

from services.gpu_agent import checkpoint_store
from services.gpu_agent.checkpoint_store import Checkpoint
from services.gpu_agent.trainers import cpu_bf16, loading, ranks
from services.gpu_agent.trainers.context import TrainContext
from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.loading import Loaded, Numerics
from services.gpu_agent.trainers.saving import CheckpointWriter
from services.gpu_agent.trainers.settings import Chosen, Settings
from services.gpu_agent.trainers.watching import RunWatcher
from shared.jobs.reasons import Reason
from shared.runs import RunSpec


@dataclass(frozen=True, slots=True)
class Session(Generic[Chosen]):
    """One attempt with its model loaded and its place to resume from known."""

    context: TrainContext
    settings: Chosen
    numbers: Numerics
    loaded: Loaded
    resumed: Checkpoint | None
    started: float
    """When the attempt began, monotonic seconds."""

    @property
    def spec(self) -> RunSpec:
        """What the attempt was asked for."""
        return self.context.spec


def begin(
    context: TrainContext, settings: Chosen, *, head: loading.Head = "language"
) -> Session[Chosen]:
    """Prepare the process and load the model. Raises TrainingFailure, StopAsked and what the libraries raise."""
    started = time.monotonic()
    spec = context.spec
    _prepare_process(spec, settings)
    ranks.join(spec.device)
    for name in ranks.first_does(lambda: checkpoint_store.sweep_leftovers(spec.checkpoint_dir)):
        context.info(f"Removed what a cut-short save left: {name}")
    resumed = _resume_point(spec)
    if resumed is not None:
        context.last_checkpoint, context.step = resumed.path, resumed.step
        context.info(f"Resuming from {resumed.path}")
    if spec.oom_halvings:
        context.warning(
            f"Earlier attempts ran out of memory: rows of one forward pass are halved {spec.oom_halvings} times, "
            "and gradients are accumulated over as many more; a step holds as many rows as before."
        )
    context.phase("loading_model")
    numbers = loading.numerics(settings.precision, spec.device, lora=settings.lora_enabled)
    if numbers.bf16 and spec.device == "cpu":
        warning = cpu_bf16.make_usable()
        if warning:
            context.warning(warning)
    loaded = loading.load(spec, settings, numbers, head=head)
    context.give_way()
    return Session(context, settings, numbers, loaded, resumed, started)


def train(session: Session[Any], trainer: Any) -> None:
    """Run a trainer that is both `SealedCheckpoints` and `Watched` from its start, or from where it was, to its end."""
    context, settings = session.context, session.settings
    watcher = RunWatcher(
        context,
        settings,
        CheckpointWriter(context, session.loaded.kind, settings.save_total_limit),
        None if session.resumed is None else session.resumed.trainer,
        session.started,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.attach(watcher)
    watcher.attach(trainer)
    trainer.add_callback(watcher)
    resumed = session.resumed
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed.path))
    context.progress(trainer.state.global_step, trainer.state.max_steps, trainer.state.epoch, 0.0)


def arguments(session: Session[Any], *, evaluates: bool) -> dict[str, Any]:
    """Return what all trainers of the Hugging Face family take alike (transformers 5.23); batches are each trainer's own."""
    spec, chosen, numbers = session.spec, session.settings, session.numbers
    return {
        "output_dir": str(spec.attempt_dir / "scratch"),
        "num_train_epochs": chosen.num_epochs,
        "max_steps": chosen.max_steps or -1,
        "learning_rate": chosen.learning_rate,
        "save_strategy": "steps",
        "save_steps": chosen.save_steps,
        "save_total_limit": None,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": chosen.eval_steps,
        "logging_strategy": "steps",
        "logging_steps": chosen.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "warmup_steps": chosen.warmup_steps,
        "lr_scheduler_type": chosen.lr_scheduler_type,
        "optim": chosen.optim,
        "adam_beta1": chosen.adam_beta1,
        "adam_beta2": chosen.adam_beta2,
        "weight_decay": chosen.weight_decay,
        "max_grad_norm": chosen.max_grad_norm,
        "seed": chosen.seed,
        "bf16": numbers.bf16,
        "fp16": numbers.fp16,
        "use_cpu": spec.device == "cpu",
        "activation_checkpointing": chosen.gradient_checkpointing,
        "gradient_checkpointing": chosen.gradient_checkpointing,
        "dataloader_pin_memory": spec.device == "cuda",
        **sharding(spec),
        "report_to": "none",
        "disable_tqdm": True,
    }


def sharding(spec: RunSpec) -> dict[str, Any]:
    """Return how several ranks share a model: nothing for ddp, each with all of it; for fsdp each holds a part.

    Weights are gathered into the first rank for a checkpoint, so that plain `from_pretrained` loads it.
    """
    if ranks.count() == 1 or spec.config.get("distribution") != "fsdp":
        return {}
    return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}


def micro_batch(spec: RunSpec, rows: int) -> int:
    """Return the most rows of one forward pass: `rows`, halved as often as earlier attempts ran out of memory."""
    return max(1, rows >> spec.oom_halvings)


def said(context: TrainContext, counts: Mapping[str, int]) -> None:
    """Log how many rows were left out, by why; nothing where there are none."""
    for why, count in counts.items():
        if count:
            context.warning(f"{count} {why}")


def _prepare_process(spec: RunSpec, chosen: Settings) -> None:
    if spec.device == "cuda" and len(spec.gpus) > 1 and ranks.count() == 1:
        raise TrainingFailure(
            Reason.CONFIG_INVALID,
            f"This trainer was started as one process but holds {len(spec.gpus)} GPUs; set num_gpus to 1.",
            f"训练以单进程启动，却分配了 {len(spec.gpus)} 块 GPU；请将 num_gpus 设为 1。",
        )
    threads = max(1, spec.threads // ranks.count())
    torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    set_seed(chosen.seed)
    disable_progress_bars()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    transformers_logging.set_verbosity_warning()  # type: ignore[no-untyped-call]


def _resume_point(spec: RunSpec) -> Checkpoint | None:
    if spec.resume_from is None:
        return None
    problem = checkpoint_store.verify(spec.resume_from)
    found = checkpoint_store.read(spec.resume_from)
    if problem is not None or isinstance(found, str):
        raise TrainingFailure(
            Reason.CHECKPOINT_CORRUPT,
            f"{spec.resume_from.name} cannot be resumed from: {problem}.",
            f"无法从 {spec.resume_from.name} 恢复：{problem}。",
        )
    return found
