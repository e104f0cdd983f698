"""Direct preference optimisation with TRL's DPOTrainer: full weights or LoRA, against the model as it was or a chosen one."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

from trl import DPOConfig, DPOTrainer

from services.gpu_agent.trainers import loading, settings, watched_pairs
from services.gpu_agent.trainers import session as sessions
from services.gpu_agent.trainers.context import TrainContext
from services.gpu_agent.trainers.evaluation import AnswerChecker, add_answers, written_together
from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.pairs import PairEncoder, load_pairs, read_pairs
from services.gpu_agent.trainers.reward_spec import rule_plan
from services.gpu_agent.trainers.rewarding import Scorer
from services.gpu_agent.trainers.session import Session
from services.gpu_agent.trainers.settings import PreferenceSettings
from services.gpu_agent.trainers.watched_pairs import WatchedPairsTrainer
from shared.jobs.reasons import Reason

_REFERENCE_ADAPTER = "ref"
"""TRL's name for its frozen copy of an adapter that is trained on."""


class WatchedDpoTrainer(WatchedPairsTrainer, DPOTrainer):  # type: ignore[misc]
    """TRL's trainer, with our checkpoints, our text of a pair and our evaluation of answers."""

    checker: AnswerChecker | None = None

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """Take our pairs as they are: tokenized and cut."""
        return dataset

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Leave the reference adapter out: it is made again from where the job started."""
        super()._save(output_dir, state_dict)
        shutil.rmtree(
            Path(output_dir or self.args.output_dir) / _REFERENCE_ADAPTER, ignore_errors=True
        )

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Add `eval_accuracy` of answers where they are asked for; that of the pairs is `eval_pair_accuracy` then."""
        output = super().evaluation_loop(*args, **kwargs)
        if self.checker is None:
            return output
        gathered = self._metrics["eval"]
        gathered["pair_accuracy"] = gathered.pop("rewards/accuracies")
        add_answers(self, self.checker, output)
        return output


def run(context: TrainContext) -> None:
    """Train as the spec says; returns when the run is over or was asked to stop. Raises what ends it badly."""
    session = sessions.begin(context, settings.parse(context.spec.config, PreferenceSettings))
    spec, loaded = session.spec, session.loaded
    reference = _reference(session)
    context.give_way()
    context.phase("tokenizing")
    encoder = PairEncoder(loaded.tokenizer, session.settings.context_length)
    train = load_pairs(context, encoder, spec.train_data_path, "train")
    path = spec.eval_data_path
    held_out = load_pairs(context, encoder, path, "eval") if path else None
    checker = _checker(session, encoder)
    context.give_way()
    options = watched_pairs.arguments(session, evaluates=held_out is not None)
    trainer = WatchedDpoTrainer(
        model=loaded.model,
        ref_model=reference,
        args=DPOConfig(**options, beta=session.settings.beta),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=loaded.tokenizer,
        peft_config=loaded.lora,
    )
    trainer.context, trainer.checker = context, checker
    try:
        sessions.train(session, trainer)
    finally:
        if checker is not None:
            checker.close()


def _reference(session: Session[PreferenceSettings]) -> Any:
    """Return the model that rewards are counted from; None where LoRA gives it: the base, or the adapter as it was.

    Without one TRL would load the model's own path again, which for a merged adapter is the base without it.
    """
    path = session.spec.model_paths.get("ref_model_path")
    if path is not None:
        session.context.info(f"The reference model is {path}")
        return loading.reference(path, session.numbers)
    return None if session.loaded.kind == "lora" else copy.deepcopy(session.loaded.model)


def _checker(session: Session[PreferenceSettings], encoder: PairEncoder) -> AnswerChecker | None:
    chosen, path = session.settings, session.spec.eval_data_path
    if not chosen.eval_generate:
        return None
    if path is None:
        raise TrainingFailure(
            Reason.CONFIG_INVALID,
            "eval_generate needs eval_data_path: the prompts to answer.",
            "eval_generate 需要 eval_data_path（用于生成回答的提示）。",
        )
    good = (pair.chosen for pair in read_pairs(path, field="eval_data_path"))
    prompts = encoder.examples.prompts(good, chosen.eval_samples)
    rule = rule_plan(session.spec.config)
    scorer = None if rule is None else Scorer(session.context, rule)
    return AnswerChecker(
        session.loaded.tokenizer,
        prompts,
        chosen.context_length,
        written_together(chosen.batch_size, session.spec.oom_halvings),
        scorer,
    )
