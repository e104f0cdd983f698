"""Supervised fine-tuning with TRL's SFTTrainer: full weights or LoRA."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from datasets import disable_progress_bars
from transformers import PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from services.gpu_agent import checkpoint_store
from services.gpu_agent.checkpoint_store import Checkpoint
from services.gpu_agent.trainers import cpu_bf16, loading, settings
from services.gpu_agent.trainers.context import Sample, StopAsked, TrainContext
from services.gpu_agent.trainers.encoding import Encoded, ExampleEncoder
from services.gpu_agent.trainers.evaluation import SHOWN_SAMPLES, AnswerChecker
from services.gpu_agent.trainers.examples import read_examples
from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.loading import Loaded, Numerics
from services.gpu_agent.trainers.saving import (
    CheckpointWriter,
    SealedCheckpoints,
    unchanged_randomness,
)
from services.gpu_agent.trainers.settings import SftSettings
from services.gpu_agent.trainers.watching import RunWatcher, watched_loss
from shared.jobs.reasons import Reason
from shared.runs import RunSpec

_EVAL_BATCH = 8
"""Without gradients a larger batch fits where a small one trains."""


class WatchedSftTrainer(SealedCheckpoints, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, with our checkpoints, our evaluation of answers and a watch over the loss."""

    context: TrainContext
    checker: AnswerChecker | None = None
    _watcher: RunWatcher

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Let the watcher see the training loss."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return (
            watched_loss(self._watcher, loss)
            if self.model.training and not return_outputs
            else loss
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without any trace in the training: generator as before, time left out; a stop cuts it short."""
        began = time.monotonic()
        try:
            with unchanged_randomness():
                metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        except StopAsked:
            self._metrics["eval"].clear()
            self._watcher.evaluation_cut_short(self.control)
            return {}
        self._watcher.evaluation_took(time.monotonic() - began)
        return metrics

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Give way to a stop between two batches."""
        self.context.give_way()
        return super().prediction_step(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Add `eval_accuracy` to what the evaluation found, and show some of the answers."""
        output = super().evaluation_loop(*args, **kwargs)
        if self.checker is not None:
            model = self.accelerator.unwrap_model(self.model)
            with self.compute_loss_context_manager():
                answers = self.checker.answers(model, self.context.give_way)
            output.metrics["eval_accuracy"] = sum(a.correct for a in answers) / len(answers)
            for answer in answers[:SHOWN_SAMPLES]:
                score = float(answer.correct)
                sample = Sample(
                    answer.prompt.shown,
                    answer.completion,
                    score,
                    {"exact_match": score},
                    truncated=answer.truncated,
                    reference=answer.prompt.reference,
                )
                self.context.sample(self.state.global_step, sample)
        return output


def run(context: TrainContext) -> None:
    """Train as the spec says; returns when the run is over or was asked to stop. Raises what ends it badly."""
    started = time.monotonic()
    spec = context.spec
    chosen = settings.parse(spec.config)
    _prepare_process(spec, chosen)
    for name in checkpoint_store.sweep_leftovers(spec.checkpoint_dir):
        context.info(f"Removed what a cut-short save left: {name}")
    resumed = _resume_point(spec)
    if resumed is not None:
        context.last_checkpoint, context.step = resumed.path, resumed.step
        context.info(f"Resuming from {resumed.path}")
    context.phase("loading_model")
    numbers = loading.numerics(chosen.precision, spec.device, lora=chosen.lora_enabled)
    if numbers.bf16 and spec.device == "cpu":
        warning = cpu_bf16.make_usable()
        if warning:
            context.warning(warning)
    loaded = loading.load(spec, chosen, numbers)
    context.give_way()
    context.phase("tokenizing")
    encoder = ExampleEncoder(loaded.tokenizer, chosen.context_length)
    train = _encode(context, encoder, spec.train_data_path, "train")
    held_out = (
        _encode(context, encoder, spec.eval_data_path, "eval") if spec.eval_data_path else None
    )
    checker = _checker(spec, chosen, encoder, loaded)
    context.give_way()
    watcher = RunWatcher(
        context,
        chosen,
        CheckpointWriter(context, loaded.kind, chosen.save_total_limit),
        None if resumed is None else resumed.trainer,
        started,
    )
    trainer = _trainer(context, chosen, numbers, loaded, train, held_out)
    trainer.context, trainer.checker = context, checker
    trainer.attach(watcher)
    watcher.attach(trainer)
    trainer.add_callback(watcher)
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed.path))
    context.progress(trainer.state.global_step, trainer.state.max_steps, trainer.state.epoch, 0.0)


def _prepare_process(spec: RunSpec, chosen: SftSettings) -> None:
    if spec.device == "cuda" and len(spec.gpus) > 1 and "WORLD_SIZE" not in os.environ:
        raise TrainingFailure(
            Reason.CONFIG_INVALID,
            f"This trainer was started as one process but holds {len(spec.gpus)} GPUs; set num_gpus to 1.",
            f"训练以单进程启动，却分配了 {len(spec.gpus)} 块 GPU；请将 num_gpus 设为 1。",
        )
    torch.set_num_threads(spec.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if spec.threads > 1 else "false"
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


def _encode(context: TrainContext, encoder: ExampleEncoder, path: str, name: str) -> Encoded:
    encoded = encoder.encode(read_examples(path, field=f"{name}_data_path"), name)
    context.info(f"{encoded.rows} rows in the {name} dataset")
    if encoded.cut:
        lost = (
            f", {encoded.dropped} of them left out because no answer is left"
            if encoded.dropped
            else ""
        )
        context.warning(
            f"{encoded.cut} of {encoded.rows} rows of the {name} dataset are longer than context_length and were cut{lost}. "
            "Raise context_length to use them whole."
        )
    return encoded


def _checker(
    spec: RunSpec, chosen: SftSettings, encoder: ExampleEncoder, loaded: Loaded
) -> AnswerChecker | None:
    if not chosen.eval_generate:
        return None
    if spec.eval_data_path is None:
        raise TrainingFailure(
            Reason.CONFIG_INVALID,
            "eval_generate needs eval_data_path: the prompts to answer.",
            "eval_generate 需要 eval_data_path（用于生成回答的提示）。",
        )
    prompts = encoder.prompts(
        read_examples(spec.eval_data_path, field="eval_data_path"), chosen.eval_samples
    )
    return AnswerChecker(loaded.tokenizer, prompts, chosen.context_length, chosen.batch_size)


def _trainer(
    context: TrainContext,
    chosen: SftSettings,
    numbers: Numerics,
    loaded: Loaded,
    train: Encoded,
    held_out: Encoded | None,
) -> WatchedSftTrainer:
    trainer = WatchedSftTrainer(
        model=loaded.model,
        args=SFTConfig(**arguments(context.spec, chosen, numbers, evaluates=held_out is not None)),
        train_dataset=train.dataset,
        eval_dataset=None if held_out is None else held_out.dataset,
        processing_class=loaded.tokenizer,
        peft_config=loaded.lora,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def arguments(
    spec: RunSpec, chosen: SftSettings, numbers: Numerics, *, evaluates: bool
) -> dict[str, Any]:
    """Return the arguments of `SFTConfig` for a job's parameters (TRL 1.16, transformers 5.23)."""
    return {
        "output_dir": str(spec.attempt_dir / "scratch"),
        "num_train_epochs": chosen.num_epochs,
        "max_steps": chosen.max_steps or -1,
        "learning_rate": chosen.learning_rate,
        "per_device_train_batch_size": chosen.batch_size,
        "per_device_eval_batch_size": max(
            chosen.batch_size, min(_EVAL_BATCH, 4 * chosen.batch_size)
        ),
        "gradient_accumulation_steps": chosen.gradient_accumulation_steps,
        "max_length": chosen.context_length,
        "packing": chosen.packing,
        "eval_packing": False,
        # our examples are tokenized and cut already; only packing is still TRL's to do
        "dataset_kwargs": None if chosen.packing else {"skip_prepare_dataset": True},
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
        "report_to": "none",
        "disable_tqdm": True,
    }
