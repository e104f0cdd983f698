"""How ppo, grpo and gspo are evaluated: prompts answered greedily, scored by the job's own reward: `eval_reward`."""

from __future__ import annotations

import statistics
from typing import Any

from datasets import Dataset
from transformers.trainer_utils import EvalLoopOutput

from services.gpu_agent.trainers import ranks, reward_stats
from services.gpu_agent.trainers.context import TrainContext
from services.gpu_agent.trainers.evaluation import SHOWN_SAMPLES, written_together
from services.gpu_agent.trainers.prompts import evaluation_prompts
from services.gpu_agent.trainers.rewarding import Scorer
from services.gpu_agent.trainers.rollout_report import sample_of
from services.gpu_agent.trainers.rollouts import LengthPlan, Rollout, RolloutPrompt
from services.gpu_agent.trainers.session import Session
from services.gpu_agent.trainers.settings import RolloutSettings
from services.gpu_agent.trainers.writing import write_greedily


class Examiner:
    """Answers and scores the evaluation prompts of one attempt. `dataset` is what the trainer takes them for."""

    def __init__(
        self,
        session: Session[RolloutSettings],
        prompts: list[RolloutPrompt],
        plan: LengthPlan,
        scorer: Scorer,
    ) -> None:
        self._context = session.context
        self._tokenizer = session.loaded.tokenizer
        self._accuracy = session.settings.eval_generate
        self._prompts = prompts
        self._new_tokens = plan.completion
        self._batch_size = written_together(session.settings.batch_size, session.spec.oom_halvings)
        self._scorer = scorer
        self.dataset = Dataset.from_dict({"prompt": [p.text for p in prompts]})

    def close(self) -> None:
        """End the scorer."""
        self._scorer.close()

    def examine(self, model: Any, step: int) -> dict[str, float]:
        """Return `eval_reward`, `eval_completion_length` and, with eval_generate, `eval_accuracy`. Raises StopAsked.

        A figure that no verdict was given for is not there.
        """
        context, plan = self._context, self._scorer.plan
        written = write_greedily(
            model,
            self._tokenizer,
            [p.ids for p in self._prompts],
            self._new_tokens,
            self._batch_size,
            context.give_way,
        )
        rollouts = [
            Rollout(p, w.text, w.truncated, tokens=w.tokens)
            for p, w in zip(self._prompts, written, strict=True)
        ]
        # every rank has the same answers; all of them must judge the run alike
        verdicts = ranks.first_does(lambda: self._scorer.score(rollouts, "eval"))
        context.give_way()
        found = {"eval_completion_length": statistics.fmean(w.tokens for w in written)}
        rewards = [v.reward for v in verdicts if v.reward is not None]
        if rewards:
            found["eval_reward"] = statistics.fmean(rewards)
        if len(rewards) < len(verdicts):
            code = next(v.error for v in verdicts if v.reward is None)
            context.warning(
                f"{len(verdicts) - len(rewards)} of {len(verdicts)} evaluation answers got no reward ({code}); they are left out."
            )
        if self._accuracy:
            measured = [plan.measured(v) for v in verdicts]
            right = reward_stats.accuracy(measured, plan.right_from)
            found |= {
                f"eval_{name.removeprefix('reward_')}": share for name, share in right.items()
            }
        for rollout, verdict in list(zip(rollouts, verdicts, strict=True))[:SHOWN_SAMPLES]:
            context.sample(step, sample_of(rollout, verdict))
        return found


class ExaminedTrainer:
    """Mixed into a trainer of the Hugging Face family, before it: replaces what an evaluation does."""

    context: TrainContext
    examiner: Examiner | None = None

    def evaluation_loop(self, *_: Any, **__: Any) -> EvalLoopOutput:
        """Let the examiner answer instead of the trainer's own loop, which would sample."""
        assert self.examiner is not None
        trainer: Any = self
        self.context.give_way()
        trainer.model.eval()
        model = trainer.accelerator.unwrap_model(trainer.model)
        with trainer.compute_loss_context_manager():
            metrics = self.examiner.examine(model, trainer.state.global_step)
        count = len(self.examiner.dataset)
        return EvalLoopOutput(
            predictions=None,  # type: ignore[arg-type]  # nobody reads them
            label_ids=None,
            metrics=metrics,
            num_samples=count,
        )


def examiner(
    session: Session[RolloutSettings], plan: LengthPlan, scorer: Scorer
) -> Examiner | None:
    """Return what evaluates the run, or None where there are no evaluation data or nothing to score them by.

    What only competes (`self_play`) has no reward for a single answer: it is left out, and where nothing else is left
    the answers are compared with the reference answers, if the rows have any.
    """
    prompts = evaluation_prompts(session, plan)
    if not prompts:
        return None
    alone = scorer.plan.alone()
    if alone.parts and all(p.competes for p in scorer.plan.parts):
        known = [p for p in prompts if p.solution is not None]
        if not known:
            session.context.warning(
                "Nothing is evaluated: self_play has no reward for a single answer, and the evaluation rows have no "
                f"{alone.parts[0].answer_key}."
            )
            return None
        prompts = known
    return Examiner(session, prompts, plan, Scorer(session.context, alone))
