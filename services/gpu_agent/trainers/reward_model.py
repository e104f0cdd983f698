"""A local reward model with TRL's RewardTrainer: a language model that ends in one number, taught by preference pairs."""

from __future__ import annotations

from trl import RewardConfig, RewardTrainer

from services.gpu_agent.trainers import session as sessions
from services.gpu_agent.trainers import settings, watched_pairs
from services.gpu_agent.trainers.context import TrainContext
from services.gpu_agent.trainers.pairs import PairEncoder, load_pairs
from services.gpu_agent.trainers.settings import PreferenceSettings
from services.gpu_agent.trainers.watched_pairs import WatchedPairsTrainer


class WatchedRewardTrainer(WatchedPairsTrainer, RewardTrainer):  # type: ignore[misc]
    """TRL's trainer, with our checkpoints and a watch over the loss."""


def run(context: TrainContext) -> None:
    """Train as the spec says; returns when the run is over or was asked to stop. Raises what ends it badly.

    The score is read at the last token, so a text is never cut there: prompts are cut at their start, as the reward
    service does when it serves the model.
    """
    chosen = settings.parse(context.spec.config, PreferenceSettings)
    session = sessions.begin(context, chosen, head="score")
    spec, tokenizer = session.spec, session.loaded.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    context.phase("tokenizing")
    encoder = PairEncoder(tokenizer, chosen.context_length, cut="start")
    train = load_pairs(context, encoder, spec.train_data_path, "train")
    path = spec.eval_data_path
    held_out = load_pairs(context, encoder, path, "eval") if path else None
    context.give_way()
    options = watched_pairs.arguments(session, evaluates=held_out is not None)
    trainer = WatchedRewardTrainer(
        model=session.loaded.model,
        args=RewardConfig(**options),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=session.loaded.lora,
    )
    trainer.context = context
    sessions.train(session, trainer)
