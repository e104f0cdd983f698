"""What the trainers of preference pairs share: batches of whole pairs, and evaluations in which every pair counts the same."""

from __future__ import annotations

from typing import Any

from services.gpu_agent.trainers import session as sessions
from services.gpu_agent.trainers.session import Session
from services.gpu_agent.trainers.settings import PreferenceSettings
from services.gpu_agent.trainers.watched import WatchedTrainer
from shared.preflight.batch import BatchPlan, arrange

_EVAL_BATCH = 8
"""Without gradients a larger batch fits where a small one trains."""


class WatchedPairsTrainer(WatchedTrainer):
    """Mixed into TRL's trainers of pairs (1.16), which average an evaluation over its batches, the last and smaller one too."""

    _pairs_of_batches: list[int]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Note how many pairs each batch of an evaluation holds."""
        if not model.training:
            self._pairs_of_batches.append(len(inputs["input_ids"]) // 2)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Weigh what TRL gathered by the pairs of each batch."""
        self._pairs_of_batches = []
        output = super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]
        pairs = self._pairs_of_batches
        gathered = self._metrics["eval"]  # type: ignore[attr-defined]
        for name, values in gathered.items():
            if len(values) == len(pairs):
                total = sum(value * count for value, count in zip(values, pairs, strict=True))
                gathered[name] = [total / sum(pairs)]
        return output


def arguments(session: Session[PreferenceSettings], *, evaluates: bool) -> dict[str, Any]:
    """Return what both TRL configurations take for a job's parameters (TRL 1.16); `batch_size` counts pairs."""
    spec, chosen = session.spec, session.settings
    plan = arrange(
        spec.algorithm,
        chosen.batch_size,
        chosen.gradient_accumulation_steps,
        max_micro=sessions.micro_batch(spec, chosen.batch_size),
    )
    assert isinstance(plan, BatchPlan)  # pairs can always be cut into single ones
    return sessions.arguments(session, evaluates=evaluates) | {
        "per_device_train_batch_size": plan.per_device,
        "gradient_accumulation_steps": plan.accumulation,
        "per_device_eval_batch_size": max(plan.per_device, min(_EVAL_BATCH, 4 * plan.per_device)),
        "max_length": None,  # our pairs are tokenized and cut already
    }
