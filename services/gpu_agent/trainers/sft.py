"""Supervised fine-tuning with TRL's SFTTrainer: full weights or LoRA."""

from __future__ import annotations

from typing import Any

from trl import SFTConfig, SFTTrainer

from services.gpu_agent.trainers import session as sessions
from services.gpu_agent.trainers import settings
from services.gpu_agent.trainers.context import TrainContext
from services.gpu_agent.trainers.encoding import Encoded, ExampleEncoder
from services.gpu_agent.trainers.evaluation import AnswerChecker, add_answers, written_together
from services.gpu_agent.trainers.examples import read_examples
from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.reward_spec import rule_plan
from services.gpu_agent.trainers.rewarding import Scorer
from services.gpu_agent.trainers.session import Session
from services.gpu_agent.trainers.settings import SftSettings
from services.gpu_agent.trainers.watched import WatchedTrainer
from shared.jobs.reasons import Reason
from shared.preflight.batch import BatchPlan, arrange

_EVAL_BATCH = 8
"""Without gradients a larger batch fits where a small one trains."""


class WatchedSftTrainer(WatchedTrainer, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, with our checkpoints, our evaluation of answers and a watch over the loss."""

    checker: AnswerChecker | None = None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Add `eval_accuracy` to what the evaluation found, and show some of the answers."""
        output = super().evaluation_loop(*args, **kwargs)
        if self.checker is not None:
            add_answers(self, self.checker, output)
        return output


def run(context: TrainContext) -> None:
    """Train as the spec says; returns when the run is over or was asked to stop. Raises what ends it badly."""
    session = sessions.begin(context, settings.parse(context.spec.config, SftSettings))
    chosen, spec = session.settings, session.spec
    context.phase("tokenizing")
    encoder = ExampleEncoder(session.loaded.tokenizer, chosen.context_length)
    train = _encode(context, encoder, spec.train_data_path, "train")
    held_out = (
        _encode(context, encoder, spec.eval_data_path, "eval") if spec.eval_data_path else None
    )
    checker = _checker(session, encoder)
    context.give_way()
    trainer = WatchedSftTrainer(
        model=session.loaded.model,
        args=SFTConfig(**arguments(session, evaluates=held_out is not None)),
        train_dataset=train.dataset,
        eval_dataset=None if held_out is None else held_out.dataset,
        processing_class=session.loaded.tokenizer,
        peft_config=session.loaded.lora,
    )
    trainer.context, trainer.checker = context, checker
    try:
        sessions.train(session, trainer)
    finally:
        if checker is not None:
            checker.close()


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


def _checker(session: Session[SftSettings], encoder: ExampleEncoder) -> AnswerChecker | None:
    chosen, path = session.settings, session.spec.eval_data_path
    if not chosen.eval_generate:
        return None
    if path is None:
        raise TrainingFailure(
            Reason.CONFIG_INVALID,
            "eval_generate needs eval_data_path: the prompts to answer.",
            "eval_generate 需要 eval_data_path（用于生成回答的提示）。",
        )
    prompts = encoder.prompts(read_examples(path, field="eval_data_path"), chosen.eval_samples)
    rule = rule_plan(session.spec.config)
    scorer = None if rule is None else Scorer(session.context, rule)
    return AnswerChecker(
        session.loaded.tokenizer,
        prompts,
        chosen.context_length,
        written_together(chosen.batch_size, session.spec.oom_halvings),
        scorer,
    )


def arguments(session: Session[SftSettings], *, evaluates: bool) -> dict[str, Any]:
    """Return the arguments of `SFTConfig` for a job's parameters (TRL 1.16)."""
    chosen = session.settings
    plan = arrange(
        "sft",
        chosen.batch_size,
        chosen.gradient_accumulation_steps,
        max_micro=sessions.micro_batch(session.spec, chosen.batch_size),
    )
    assert isinstance(plan, BatchPlan)  # rows can always be cut into single ones
    return sessions.arguments(session, evaluates=evaluates) | {
        "per_device_train_batch_size": plan.per_device,
        "gradient_accumulation_steps": plan.accumulation,
        "per_device_eval_batch_size": max(plan.per_device, min(_EVAL_BATCH, 4 * plan.per_device)),
        "max_length": chosen.context_length,
        "packing": chosen.packing,
        "eval_packing": False,
        # our examples are tokenized and cut already; only packing is still TRL's to do
        "dataset_kwargs": None if chosen.packing else {"skip_prepare_dataset": True},
    }
