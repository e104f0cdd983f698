"""What GRPO and GSPO share: TRL's GRPOTrainer with rewards of the reward service, and steps that know what they may learn.

Sources: GRPO, arXiv 2402.03300; GSPO, arXiv 2507.18071; TRL 1.16, `trl/trainer/grpo_trainer.py`.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any, Final

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.grpo_trainer import add_fused_lm_head, prepare_fsdp

from services.gpu_agent.trainers import loading, prompts, rollout_evaluation, settings
from services.gpu_agent.trainers import session as sessions
from services.gpu_agent.trainers.context import TrainContext
from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.group_rewards import NAME, GroupRewards, Scored
from services.gpu_agent.trainers.reward_spec import reward_plan
from services.gpu_agent.trainers.rewarding import Scorer
from services.gpu_agent.trainers.rollout_evaluation import ExaminedTrainer
from services.gpu_agent.trainers.rollout_report import RolloutReport
from services.gpu_agent.trainers.rollouts import RolloutPrompt
from services.gpu_agent.trainers.session import Session
from services.gpu_agent.trainers.settings import RolloutSettings
from services.gpu_agent.trainers.watched import WatchedTrainer
from shared.jobs.reasons import Reason
from shared.preflight.batch import BatchPlan, arrange, total_steps
from shared.preflight.finding import Finding

_REPORTED: Final = frozenset(
    {
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
        "completions/clipped_ratio",
        "frac_reward_zero_std",
        f"rewards/{NAME}/mean",
        f"rewards/{NAME}/std",
    }
)
"""Metrics of TRL that our report has, over the rewards that are there."""


class _Repeated(logging.Filter):
    """Drops TRL's line, in every step, about rewards that are None: our report counts them and names why."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep everything else."""
        return "All reward functions returned None" not in record.getMessage()


_FILTER: Final = _Repeated()


class GroupTrainer(ExaminedTrainer, WatchedTrainer, GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer, on-policy: one optimizer step for each generation, so that any step can be resumed from exactly."""

    rewards: GroupRewards
    report: RolloutReport
    ids: dict[str, tuple[int, ...]]
    """Tokens of each rendered prompt: rendering them anew would add a second begin token with some tokenizers."""
    _blank = False

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self.ids[text]) for text in prompts], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], None]:
        """Write in the pieces in which the loss is taken: what was cut because memory ran out must be cut here too."""
        size = self.args.per_device_train_batch_size
        written: list[list[int]] = []
        for start in range(0, len(prompt_ids), size):
            piece, _ = super()._generate_single_turn(
                prompt_ids[start : start + size], *args, **kwargs
            )
            written += piece
        return written, None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Generate, score, report; a completion without a verdict takes no part in the loss, neither by KL nor entropy."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        scored = self.rewards.last
        assert scored is not None
        self._blank = scored.blank
        lost = [n for n, v in enumerate(scored.verdicts[scored.own]) if v.reward is None]
        if lost:
            output["completion_mask"][lost] = 0
            left = output["completion_mask"].sum()
            output["num_items_in_batch"] = self.accelerator.gather(left).sum()
        self._report(scored, output["advantages"])
        return output

    def _report(self, scored: Scored, advantages: torch.Tensor) -> None:
        everyone = self.accelerator.gather(advantages).tolist()
        step = self.state.global_step + 1
        found = self.report.step(step, scored.rollouts, scored.verdicts, everyone, scored.seconds)
        kept = self._metrics["train"]
        for name in _REPORTED:
            kept.pop(name, None)
        for name in ("reward", "reward_std"):  # the same names, taken over what had no verdict too
            kept[name].pop()
        for name, value in found.items():
            kept[name].append(value)
        for name in [n for n, values in kept.items() if not values]:
            del kept[name]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Let a step that nobody could judge change nothing: without gradients the optimizer leaves every weight alone.

        With gradients of zero it would not: Adam goes on by its momentum, and weight decay takes its share.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not self._blank:
            return loss
        for weight in model.parameters():
            if self.accelerator.scaler is None:
                weight.grad = None
            elif weight.grad is not None:
                weight.grad.fill_(
                    torch.inf
                )  # the scaler of fp16 wants gradients, and skips the step for these
        return torch.zeros_like(loss)

    def policy_scores(
        self, asked: Sequence[RolloutPrompt], completion_ids: Sequence[Sequence[int]]
    ) -> list[float]:
        """Return the mean log-probability of each completion's tokens under the policy that wrote it."""
        width = max(len(p.ids) for p in asked)
        longest = max(len(ids) for ids in completion_ids)
        pad = self._tokenizer.pad_token_id
        rows, mask = [], []
        for prompt, ids in zip(asked, completion_ids, strict=True):
            left, right = width - len(prompt.ids), longest - len(ids)
            rows.append([pad] * left + [*prompt.ids, *ids] + [pad] * right)
            mask.append([0] * left + [1] * (len(prompt.ids) + len(ids)) + [0] * right)
        device = self.accelerator.device
        attention = torch.tensor(mask, device=device)
        with torch.no_grad():
            logprobs, _, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.tensor(rows, device=device),
                attention,
                longest,
                batch_size=self.args.per_device_train_batch_size,
            )
        kept = attention[:, -longest:]
        means = (logprobs.float() * kept).sum(1) / kept.sum(1).clamp(min=1)
        return [float(mean) for mean in means.tolist()]


def run(context: TrainContext, **objective: Any) -> None:
    """Train as the spec says; `objective` are the arguments of `GRPOConfig` in which the algorithms differ."""
    session = sessions.begin(context, settings.parse(context.spec.config, RolloutSettings))
    chosen, spec = session.settings, session.spec
    plan = reward_plan(spec.config, loading.reward_models(spec.model_paths), chosen.rollout_n)
    context.phase("tokenizing")
    logging.getLogger("trl.trainer.grpo_trainer").addFilter(_FILTER)
    asked = prompts.training_prompts(session)
    batch = _batch(session, len(asked.kept))
    with ExitStack() as opened:
        scorer = opened.enter_context(closing(Scorer(context, plan)))
        examiner = rollout_evaluation.examiner(session, asked.plan, scorer)
        if examiner is not None:
            opened.enter_context(closing(examiner))
        context.give_way()
        chosen_arguments = _arguments(session, batch, asked.plan.completion, examiner is not None)
        reference = _reference(session)
        rewards = GroupRewards(scorer, asked.kept, chosen.rollout_n)
        trainer = GroupTrainer(
            model=session.loaded.model,
            reward_funcs=rewards,
            args=GRPOConfig(**chosen_arguments | objective),
            train_dataset=_dataset(asked.kept),
            eval_dataset=None if examiner is None else examiner.dataset,
            processing_class=session.loaded.tokenizer,
            peft_config=session.loaded.lora,
        )
        rewards.ends = frozenset([*trainer.eos_token_ids, trainer._tokenizer.pad_token_id])
        rewards.policy_scores = trainer.policy_scores
        trainer.rewards, trainer.context, trainer.examiner = rewards, context, examiner
        trainer.ids = {p.text: p.ids for p in asked.kept}
        trainer.report = RolloutReport(context, plan, chosen.min_valid_reward_rate)
        _use_reference(trainer, reference)
        sessions.train(session, trainer)


def _dataset(kept: Sequence[RolloutPrompt]) -> Dataset:
    return Dataset.from_dict({"prompt": [p.text for p in kept], "index": [p.index for p in kept]})


def _batch(session: Session[RolloutSettings], rows: int) -> BatchPlan:
    """Cut one step's completions for the device. Raises TrainingFailure where the figures, or the data, do not allow it."""
    chosen, spec = session.settings, session.spec

    def cut(most: int | None) -> BatchPlan | Finding:
        return arrange(
            spec.algorithm,
            chosen.batch_size,
            chosen.gradient_accumulation_steps,
            rollout_n=chosen.rollout_n,
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            max_micro=most,
        )

    plan = cut(None)
    if isinstance(plan, BatchPlan):  # halved from what one pass held, not from what a step holds
        plan = cut(sessions.micro_batch(spec, plan.per_device))
    problem = plan if isinstance(plan, Finding) else total_steps(plan, spec.algorithm, rows)
    if isinstance(problem, Finding):
        raise TrainingFailure(Reason.CONFIG_INVALID, problem.message_en, problem.message_zh)
    assert isinstance(plan, BatchPlan)
    for note in plan.notes:
        session.context.warning(note.message_en)
    return plan


def _arguments(
    session: Session[RolloutSettings], batch: BatchPlan, completion: int, evaluates: bool
) -> dict[str, Any]:
    """Return the arguments of `GRPOConfig` for a job's parameters (TRL 1.16)."""
    chosen = session.settings
    return sessions.arguments(session, evaluates=evaluates) | {
        "per_device_train_batch_size": batch.per_device,
        "gradient_accumulation_steps": batch.accumulation,
        "per_device_eval_batch_size": batch.eval_batch,
        "num_generations": chosen.rollout_n,
        "max_completion_length": completion,
        "temperature": chosen.temperature,
        "top_p": chosen.top_p,
        "beta": chosen.kl_coef,
        "epsilon": chosen.clip_ratio,
        "entropy_coef": chosen.entropy_coef,
    }


def _reference(session: Session[RolloutSettings]) -> Any:
    """Return the reference model, or None where there is none, or where it is the policy with its adapter off.

    TRL would load it by the name in the policy's config, which for a merged LoRA checkpoint is that of its base.
    """
    path = session.spec.model_paths.get("ref_model_path")
    if session.settings.kl_coef == 0:
        return None
    if path is None:
        return None if session.loaded.kind == "lora" else copy.deepcopy(session.loaded.model)
    model = loading.reference(path, session.numbers)
    ours, theirs = session.loaded.model.config.vocab_size, model.config.vocab_size
    if ours != theirs:
        raise TrainingFailure(
            Reason.CONFIG_INVALID,
            f"ref_model_path has a vocabulary of {theirs} tokens, the model has {ours}; take a reference of the same family.",
            f"ref_model_path 的词表大小为 {theirs}，而模型为 {ours}；请选择同一系列的参考模型。",
        )
    return model


def _use_reference(trainer: Any, model: Any) -> None:
    if model is None:
        return
    trainer.ref_model = None  # first: two of them would not fit where one does
    model.requires_grad_(False)
    add_fused_lm_head(model, temperature=trainer.temperature, cast_lm_head_to_fp32=False)
    if trainer.is_fsdp_enabled:
        trainer.ref_model = prepare_fsdp(model, trainer.accelerator)
    else:
        trainer.ref_model = trainer.accelerator.prepare_model(model, evaluation_mode=True)
