"""Proximal policy optimisation with a value head: full weights or LoRA. TRL 1.16 has none; the equations are in `ppo_losses`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import get_peft_model
from transformers import TrainingArguments

from services.gpu_agent.trainers import loading, ranks, settings
from services.gpu_agent.trainers import session as sessions
from services.gpu_agent.trainers.context import StopAsked, TrainContext
from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.ppo_model import PolicyWithValue
from services.gpu_agent.trainers.ppo_reference import make_reference
from services.gpu_agent.trainers.ppo_rollout import Sampler
from services.gpu_agent.trainers.ppo_trainer import PpoTrainer
from services.gpu_agent.trainers.prompts import training_prompts
from services.gpu_agent.trainers.reward_spec import reward_plan
from services.gpu_agent.trainers.rewarding import Scorer
from services.gpu_agent.trainers.rollout_evaluation import examiner
from services.gpu_agent.trainers.rollout_report import RolloutReport
from services.gpu_agent.trainers.rollouts import Rollout, Verdict
from services.gpu_agent.trainers.session import Session
from services.gpu_agent.trainers.settings import PpoSettings
from shared.jobs.reasons import Reason
from shared.preflight.batch import BatchPlan, arrange, ppo_piece


def run(context: TrainContext) -> None:
    """Train as the spec says; returns when the run is over or was asked to stop. Raises what ends it badly."""
    session = sessions.begin(context, settings.parse(context.spec.config, PpoSettings))
    spec, chosen = session.spec, session.settings
    arranged(session)
    plan = reward_plan(spec.config, loading.reward_models(spec.model_paths), chosen.rollout_n)
    context.phase("tokenizing")
    prompts = training_prompts(session)
    scorer = Scorer(context, plan)
    examined = None
    try:
        whole: Session[Any] = session
        examined = examiner(whole, prompts.plan, scorer)
        context.give_way()
        lora = session.loaded.lora
        policy = (
            session.loaded.model if lora is None else get_peft_model(session.loaded.model, lora)
        )
        reference = make_reference(session, policy)
        trainer = PpoTrainer(
            model=PolicyWithValue(policy),
            args=TrainingArguments(**arguments(session, evaluates=examined is not None)),
            train_dataset=[{"index": n} for n in range(len(prompts.kept))],
            eval_dataset=None if examined is None else examined.dataset,
            processing_class=session.loaded.tokenizer,
            data_collator=_indices,
        )
        if reference is not None:
            reference.to(trainer.args.device)
        trainer.context, trainer.settings = context, chosen
        trainer.prompts, trainer.examiner, trainer.reference = prompts.kept, examined, reference
        trainer.needs_scores = plan.needs_scores
        trainer.micro_batch = micro_batch(session)
        trainer.sampler = Sampler(
            policy,
            session.loaded.tokenizer,
            temperature=chosen.temperature,
            top_p=chosen.top_p,
            max_completion=prompts.plan.completion,
            micro_batch=written_at_once(session),
            should_stop=context.should_stop,
        )
        trainer.judge = scorer.score
        trainer.report = _reporting(
            RolloutReport(context, plan, chosen.min_valid_reward_rate), scorer
        )
        try:
            sessions.train(session, trainer)
        except StopAsked:
            trainer.save_where_it_stood()
            raise
    finally:
        scorer.close()
        if examined is not None:
            examined.close()


def arguments(session: Session[PpoSettings], *, evaluates: bool) -> dict[str, Any]:
    """Return the arguments of `TrainingArguments` for a job's parameters: one batch is the prompts of one rollout."""
    return sessions.arguments(session, evaluates=evaluates) | {
        "per_device_train_batch_size": arranged(session).prompts_per_step // ranks.count(),
        "gradient_accumulation_steps": 1,  # pieces of a minibatch are the trainer's own affair
        "dataloader_drop_last": True,
        "remove_unused_columns": False,
    }


def arranged(session: Session[PpoSettings]) -> BatchPlan:
    """Return the batch of one rollout. Raises TrainingFailure where the figures do not go together.

    Several ranks share the prompts of a step, each with all completions of its own.
    """
    chosen, count = session.settings, ranks.count()
    if sessions.sharding(session.spec):
        raise TrainingFailure(
            Reason.CONFIG_INVALID,
            "ppo trains on several GPUs with distribution ddp only; fsdp would split policy and value head. Set ddp.",
            "ppo 在多块 GPU 上只支持 distribution 为 ddp；fsdp 会拆分策略与价值头。请改为 ddp。",
        )
    if chosen.batch_size % count:
        raise TrainingFailure(
            Reason.CONFIG_INVALID,
            f"The {chosen.batch_size} prompts of a step (batch_size) cannot be shared by {count} GPUs. Set batch_size to a multiple of {count}.",
            f"每一步的 {chosen.batch_size} 个提示（batch_size）无法平均分给 {count} 块 GPU。请将 batch_size 设为 {count} 的倍数。",
        )
    plan = arrange(
        "ppo",
        chosen.batch_size,
        chosen.gradient_accumulation_steps,
        rollout_n=chosen.rollout_n,
        world_size=count,
    )
    if not isinstance(plan, BatchPlan):
        raise TrainingFailure(Reason.CONFIG_INVALID, plan.message_en, plan.message_zh)
    return plan


def micro_batch(session: Session[PpoSettings]) -> int:
    """Return the most completions of one pass with gradients.

    A minibatch is cut into `gradient_accumulation_steps` pieces, and those are halved as often as memory ran out.
    """
    chosen = session.settings
    piece = ppo_piece(
        chosen.batch_size,
        chosen.rollout_n,
        chosen.gradient_accumulation_steps,
        minibatches=chosen.ppo_minibatches,
        world_size=ranks.count(),
    )
    return sessions.micro_batch(session.spec, piece)


def written_at_once(session: Session[PpoSettings]) -> int:
    """Return the most completions written side by side: all of a step, or what one pass holds once memory ran out."""
    chosen = session.settings
    if session.spec.oom_halvings:
        return micro_batch(session)
    return chosen.batch_size // ranks.count() * chosen.rollout_n


def _reporting(report: RolloutReport, scorer: Scorer) -> Any:
    def step(
        number: int,
        rollouts: Sequence[Rollout],
        verdicts: Sequence[Verdict],
        advantages: Sequence[float],
    ) -> dict[str, float]:
        return report.step(number, rollouts, verdicts, advantages, scorer.seconds)

    return step


def _indices(rows: list[dict[str, int]]) -> dict[str, torch.Tensor]:
    return {"index": torch.tensor([row["index"] for row in rows])}
