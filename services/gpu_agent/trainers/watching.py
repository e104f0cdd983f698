"""Follows one training run step by step: what it reports, when it saves, and every way it may end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState

from services.gpu_agent.trainers import ranks
from services.gpu_agent.trainers.context import TrainContext
from services.gpu_agent.trainers.judging import NONFINITE_STEPS, Best, StepTimes, TokenRate, reached
from services.gpu_agent.trainers.memory import MemoryWatch
from services.gpu_agent.trainers.metric_names import public
from services.gpu_agent.trainers.saving import CheckpointWriter, not_finite, weights_finite
from services.gpu_agent.trainers.settings import Settings

_PROGRESS_SECONDS = 1.0
_KEPT_HISTORY = 5


class RunWatcher(TrainerCallback):
    """The callback of every trainer of this package."""

    def __init__(
        self,
        context: TrainContext,
        settings: Settings,
        writer: CheckpointWriter,
        kept: Mapping[str, Any] | None,
        started: float,
    ) -> None:
        """`kept` is what the checkpoint resumed from has kept; `started` when the attempt began (monotonic seconds)."""
        self._context = context
        self._settings = settings
        self._writer = writer
        self._resumed = kept is not None
        kept = kept or {}
        self._best = Best.from_json(settings.best_metric, kept.get("best"))
        self._tokens = float(kept.get("tokens", 0))
        self._evaluation_due = bool(kept.get("evaluation_due", False))
        limit = settings.time_limit_minutes
        self._deadline = math.inf if limit is None else started + limit * 60
        self._memory = MemoryWatch()
        self._times = StepTimes()
        self._rate = TokenRate(time.monotonic(), self._tokens)
        self._step_ended = 0.0
        self._progress_at = -math.inf
        self._lost_in_a_row = 0
        self._trainer: Any = None
        self.loss_lost = False
        """Set by the trainer where a loss of the running step is not finite."""

    def attach(self, trainer: Any) -> None:
        """Get to know the trainer, and give it its token count back."""
        self._trainer = trainer
        if hasattr(trainer, "_total_train_tokens"):
            trainer._total_train_tokens = int(
                self._tokens
            )  # restarts at 0 after a resume otherwise

    # ---- hooks of transformers, in the order in which a step calls them

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save checkpoint-0 of a new run, or make up for an evaluation that a stop had cut short."""
        context = self._context
        state.logging_steps, state.eval_steps, state.save_steps = (
            args.logging_steps,
            args.eval_steps,
            args.save_steps,
        )
        context.progress(state.global_step, state.max_steps, state.epoch or 0.0, None)
        if not self._resumed:
            self.save(self._trainer)
        elif self._evaluation_due and args.eval_strategy != "no":
            self._catch_up(state, control)
        context.phase("training")
        now = time.monotonic()
        self._step_ended = now
        self._rate = TokenRate(now, self._tokens)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take the time of the step, and look for a reason to end; all ranks find the same one, at the same step."""
        now = time.monotonic()
        context = self._context
        asked, unavailable, late, self.loss_lost = ranks.agree(
            context.should_stop(),
            context.stop_cause == "reward_unavailable",
            now >= self._deadline and state.global_step < state.max_steps,
            self.loss_lost,
        )
        self._times.add(now - self._step_ended)
        self._step_ended = now
        if self.loss_lost:
            control.should_log = True  # so that it is on record before the run ends
        elif not control.should_log:
            self._lost_in_a_row = 0
        self._context.step = state.global_step
        for warning in self._memory.look(now):
            self._context.warning(warning)
        if asked or unavailable:
            context.stop.asked = asked
            if unavailable:
                context.stop_cause = "reward_unavailable"
            self._evaluation_due = bool(control.should_evaluate)
            self._end(control, evaluate=False)
        elif late:
            self._context.stop_cause = "time_limit"
            self._evaluation_due = bool(control.should_evaluate)
            self._end(control, evaluate=False)
        elif control.should_evaluate:
            self._context.phase("evaluating")

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Report one record of the trainer; the last summary of a run holds nothing new."""
        del state.log_history[
            :-_KEPT_HISTORY
        ]  # it would be written, ever longer, into every checkpoint
        if logs is None or "train_runtime" in logs:
            return
        metrics = public(self._context.spec.algorithm, logs)
        if any(name.startswith("eval_") for name in metrics):
            self._report_evaluation(state, metrics)
        elif "loss" in metrics:
            self._report_step(args, state, control, ranks.first_does(lambda: metrics))

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Judge an evaluation: keep a checkpoint of the best, end where the target or the patience is reached."""
        self._evaluation_due = False
        # saves and ends are for all ranks
        found = ranks.first_does(lambda: public(self._context.spec.algorithm, metrics or {}))
        value = found.get(self._best.metric)
        if value is not None:
            self._best = self._best.after(state.global_step, value)
            if self._best.step == state.global_step:
                control.should_save = True
            if self._best.exhausted(self._settings.early_stopping_patience):
                self._context.stop_cause = self._context.stop_cause or "early_stopping"
                self._end(control, evaluate=False)
        self._look_for_target(control, found, evaluate=False)

    # ---- what the trainer calls

    def save(self, trainer: Any) -> None:
        """Save a checkpoint now."""
        began = time.monotonic()
        state, control = trainer.state, trainer.control
        last = state.global_step > 0 and bool(
            control.should_training_stop or state.global_step >= state.max_steps
        )
        kept = {
            "best": self._best.as_json(),
            "tokens": self._tokens,
            "epoch": state.epoch,
            "max_steps": state.max_steps,
            "evaluation_due": self._evaluation_due,
        }
        self._writer.save(trainer, best_step=self._best.step, last=last, kept=kept)
        if not last and state.global_step > 0:
            self._context.phase("training")
        self._leave_out(time.monotonic() - began)

    def evaluation_cut_short(self, control: TrainerControl) -> None:
        """Remember that a stop came in the middle of an evaluation."""
        self._evaluation_due = True
        control.should_evaluate = False
        self._end(control, evaluate=False)

    def evaluation_took(self, seconds: float) -> None:
        """Leave the time of an evaluation out of rates and estimates."""
        self._leave_out(seconds)
        self._context.phase("training")

    # ---- parts

    def _report_step(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: dict[str, float]
    ) -> None:
        context, step, now = self._context, state.global_step, time.monotonic()
        self._tokens = metrics.get("num_tokens", self._tokens)
        rate = self._rate.read(now, self._tokens)
        if rate is not None:
            metrics["tokens_per_second"] = round(rate, 2)
        context.metric(step, state.epoch, metrics)
        reward = f", reward={metrics['reward']:.4g}" if "reward" in metrics else ""
        context.info(
            f"Step {step}/{state.max_steps}: loss={metrics['loss']:.4g}, lr={metrics['learning_rate']:.6g}{reward}"
        )
        done = step >= state.max_steps or bool(control.should_training_stop)
        if done or now - self._progress_at >= _PROGRESS_SECONDS:
            self._progress_at = now
            context.progress(
                step, state.max_steps, state.epoch, self._times.eta_seconds(state.max_steps - step)
            )
        self._look_for_loss(step, metrics)
        self._look_for_target(control, metrics, evaluate=args.eval_strategy != "no")

    def _report_evaluation(self, state: TrainerState, metrics: dict[str, float]) -> None:
        self._context.metric(state.global_step, state.epoch, metrics)
        listed = ", ".join(
            f"{n}={metrics[n]:.4g}"
            for n in ("eval_loss", "eval_reward", "eval_accuracy")
            if n in metrics
        )
        self._context.info(f"Evaluation at step {state.global_step}: {listed}")

    def _look_for_loss(self, step: int, metrics: Mapping[str, float]) -> None:
        """End the run where its numbers are lost for good. Raises TrainingFailure."""
        norm_lost = (
            not math.isfinite(metrics.get("grad_norm", 0.0)) and not self._skipped_by_scaler()
        )
        lost = self.loss_lost or norm_lost or not math.isfinite(metrics["loss"])
        self.loss_lost = False
        if not lost:
            self._lost_in_a_row = 0
            return
        self._lost_in_a_row += 1
        self._context.warning(
            f"Step {step}: loss or gradient is not finite ({self._lost_in_a_row} in a row)"
        )
        if self._lost_in_a_row >= NONFINITE_STEPS or not weights_finite(self._trainer.model):
            raise not_finite(step)

    def _skipped_by_scaler(self) -> bool:
        """With fp16 an infinite norm while the scale is being found is normal: that step changed nothing."""
        return bool(self._trainer.accelerator.optimizer_step_was_skipped)

    def _look_for_target(
        self, control: TrainerControl, metrics: Mapping[str, float], *, evaluate: bool
    ) -> None:
        name, target = self._settings.stop_metric, self._settings.stop_value
        value = None if name is None else metrics.get(name)
        if name is None or target is None or value is None or not reached(name, value, target):
            return
        if self._context.stop_cause in (None, "early_stopping"):
            self._context.stop_cause = "stop_metric"
            self._context.info(f"{name}={value:.4g} has reached stop_value {target:g}")
        self._end(control, evaluate=evaluate)

    def _end(self, control: TrainerControl, *, evaluate: bool) -> None:
        control.should_training_stop = True
        control.should_save = True
        control.should_evaluate = evaluate

    def _catch_up(self, state: TrainerState, control: TrainerControl) -> None:
        """Make the evaluation that a stop had cut short; its checkpoint is there already."""
        self._trainer.evaluate()
        control.should_save = bool(control.should_training_stop)
        if self._best.step == state.global_step:
            self._writer.announce_again(state.global_step)

    def _leave_out(self, seconds: float) -> None:
        self._rate.pause(seconds)
        self._step_ended += seconds


def watched_loss(watcher: RunWatcher, loss: Any) -> Any:
    """Note a loss that is not finite. The trainer has just waited for the forward pass, so reading it is free."""
    if not math.isfinite(cast(float, loss.detach().item())):
        watcher.loss_lost = True
    return loss
