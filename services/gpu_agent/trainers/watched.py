"""Mixed into a trainer of the Hugging Face family, before it: a watch over its loss, and evaluations without a trace."""

from __future__ import annotations

import time
from typing import Any

from services.gpu_agent.trainers.context import StopAsked, TrainContext
from services.gpu_agent.trainers.saving import SealedCheckpoints, unchanged_randomness
from services.gpu_agent.trainers.watching import RunWatcher, watched_loss


class WatchedTrainer(SealedCheckpoints):
    """The watcher sees every training loss; a stop cuts an evaluation short."""

    context: TrainContext
    _watcher: RunWatcher

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Let the watcher see the training loss."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        watched = model.training and not return_outputs
        return watched_loss(self._watcher, loss) if watched else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without any trace in the training: generator as before, time left out; a stop cuts it short."""
        began = time.monotonic()
        try:
            with unchanged_randomness():
                metrics: dict[str, float] = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        except StopAsked:
            self.forget_evaluation()
            self._watcher.evaluation_cut_short(self.control)  # type: ignore[attr-defined]
            return {}
        self._watcher.evaluation_took(time.monotonic() - began)
        return metrics

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Give way to a stop between two batches."""
        self.context.give_way()
        return super().prediction_step(*args, **kwargs)  # type: ignore[misc]

    def forget_evaluation(self) -> None:
        """Drop what a cut-short evaluation had gathered (TRL keeps it by mode)."""
        gathered = getattr(self, "_metrics", None)
        if gathered is not None:
            gathered["eval"].clear()
