"""PPO on the Hugging Face trainer: one of its steps is one rollout, whatever number of updates is made from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import Trainer

from services.gpu_agent.trainers import ppo_losses, ranks
from services.gpu_agent.trainers.context import StopAsked
from services.gpu_agent.trainers.ppo_experience import (
    TERMS,
    Experience,
    experience,
    minibatches,
    terms,
)
from services.gpu_agent.trainers.ppo_model import PolicyWithValue
from services.gpu_agent.trainers.ppo_reference import Reference
from services.gpu_agent.trainers.ppo_rollout import Completions, Sampler, pieces, rollouts
from services.gpu_agent.trainers.rollout_evaluation import ExaminedTrainer
from services.gpu_agent.trainers.rollouts import Rollout, RolloutPrompt, Verdict
from services.gpu_agent.trainers.saving import Generators, generators, restore_generators
from services.gpu_agent.trainers.settings import PpoSettings
from services.gpu_agent.trainers.watched import WatchedTrainer
from services.gpu_agent.trainers.watching import watched_loss

Judge = Callable[[Sequence[Rollout]], list[Verdict]]
Report = Callable[[int, Sequence[Rollout], Sequence[Verdict], Sequence[float]], dict[str, float]]


class PpoTrainer(ExaminedTrainer, WatchedTrainer, Trainer):
    """Samples, asks what the completions are worth, and learns from them, minibatch by minibatch.

    The last update of a step is left to the trainer's own loop (clip, step, schedule, count); those before it are made
    here in the same way. A checkpoint therefore only ever lies between two rollouts.
    """

    settings: PpoSettings
    prompts: Sequence[RolloutPrompt]
    sampler: Sampler
    reference: Reference | None
    judge: Judge
    report: Report
    needs_scores: bool
    micro_batch: int
    """Most completions in one forward pass with gradients."""

    _total_train_tokens = 0
    _after_step: Generators | None = None
    _nothing_learned = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._logged: dict[str, list[float]] = defaultdict(list)

    # ---- one step

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Sample, judge and learn; return the mean loss of the updates. Raises StopAsked where a stop came before them."""
        prompts = [self.prompts[i] for i in inputs["index"].tolist()]
        lessons = self._roll_out(
            model, [p for p in prompts for _ in range(self.settings.rollout_n)]
        )
        loss = self._learn(model, lessons)
        self._after_step = generators()
        return loss

    def _roll_out(self, model: Any, prompts: Sequence[RolloutPrompt]) -> Experience:
        model.eval()
        policy = self.accelerator.unwrap_model(self.model).policy
        # one context each: autocast keeps casts of weights, and the reference may put others in their place
        with self.compute_loss_context_manager():
            completions = self.sampler.sample(policy, prompts)
        (cut_short,) = ranks.agree(completions is None)
        if cut_short or completions is None:
            self.context.stop.asked = True
            raise StopAsked
        logp, values, reference_logp = self._seen_by_all(model, completions)
        self.context.give_way()
        judged = rollouts(
            prompts, completions, logp, self.processing_class, scored=self.needs_scores
        )
        verdicts = self.judge(judged)
        self.context.give_way()  # a stop cuts the judging short: what is missing then says nothing
        lessons = experience(
            completions,
            logp,
            reference_logp,
            values,
            [v.reward for v in verdicts],
            self.settings,
            self._total,
        )
        figures = self.report(
            self.state.global_step + 1,
            *(gather_object(list(own)) for own in (judged, verdicts, lessons.row_advantages())),
        )
        if reference_logp is not None:
            kl = ppo_losses.kl_k3(logp, reference_logp)
            figures["kl_divergence"] = self._mean(kl, completions.mask)
        for name, value in figures.items():
            self._logged[name].append(value)
        tokens = torch.tensor(completions.tokens, device=logp.device)
        self._total_train_tokens += int(self._total(tokens))
        return lessons

    def _seen_by_all(
        self, model: Any, completions: Completions
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return log-probabilities and values of the policy, and the reference's log-probabilities, all `[N, T]`."""
        cut = pieces(torch.arange(len(completions.mask)), self.micro_batch)
        logp, values, reference_logp = [], [], []
        with torch.no_grad(), self.compute_loss_context_manager():
            for rows in cut:
                seen = model(*self._batch(completions, rows))
                logp.append(seen[0])
                values.append(seen[2])
                self.context.give_way()
        if self.reference is None:
            return torch.cat(logp), torch.cat(values), None
        with self.compute_loss_context_manager():
            for rows in cut:
                reference_logp.append(self.reference.logprobs(*self._batch(completions, rows)))
                self.context.give_way()
        return torch.cat(logp), torch.cat(values), torch.cat(reference_logp)

    def _batch(self, completions: Completions, rows: Tensor) -> tuple[Tensor, Tensor, int, float]:
        rows = rows.to(completions.input_ids.device)
        ids, attention = completions.input_ids[rows], completions.attention_mask[rows]
        return ids, attention, completions.length, self.settings.temperature

    # ---- learning from it

    def _learn(self, model: Any, lessons: Experience) -> Tensor:
        """Make all updates but the last, whose gradients are left in place; return the mean loss, a scalar."""
        model.train()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "train", None)):  # schedule-free ones
            optimizer.train()
        dealt = [
            rows
            for _ in range(self.settings.ppo_epochs)
            for rows in minibatches(lessons.judged, self.settings.ppo_minibatches)
        ]
        counts = self._total(torch.stack([lessons.mask[rows].sum() for rows in dealt])).tolist()
        updates = [(rows, count) for rows, count in zip(dealt, counts, strict=True) if count]
        losses = []
        for number, (rows, count) in enumerate(updates):
            if number:
                self._update(model)
            losses.append(watched_loss(self._watcher, self._gradients(model, lessons, rows, count)))
        self._nothing_learned = not updates
        if not updates:
            # without gradients Adam's momentum alone would move the weights: the loop's own step is held back
            self.accelerator.gradient_state._set_sync_gradients(False)
            return torch.zeros((), device=lessons.logp.device)
        return torch.stack(losses).mean()

    def _gradients(self, model: Any, lessons: Experience, rows: Tensor, count: int) -> Tensor:
        """Add up the gradients of one minibatch of `count` tokens (over all processes), piece by piece; return its loss."""
        sums = torch.zeros(len(TERMS) + 1, device=lessons.logp.device)
        cut = pieces(rows, self.micro_batch)
        for number, piece in enumerate(cut):
            last = number == len(cut) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    seen = model(*self._batch(lessons.completions, piece))
                    sums_here = terms(seen, lessons, piece, self.settings) / count
                # processes average their gradients, and `count` is that of all of them
                self.accelerator.backward(sums_here[0] * self.accelerator.num_processes)
            sums += sums_here.detach()
        loss, *others = self._total(sums).unbind()
        for name, value in zip(TERMS, others, strict=True):
            self._logged[name].append(float(value))
        return loss

    def _update(self, model: Any) -> None:
        """Clip and step, as the trainer's loop does after the last minibatch."""
        if self.args.max_grad_norm > 0:
            self._clip_grad_norm(model)
        optimizer: Any = self.optimizer
        optimizer.step()
        model.zero_grad()

    def _clip_grad_norm(self, model: Any) -> Any:
        return 0.0 if self._nothing_learned else super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if self._nothing_learned:
            return 0.0
        return super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]

    # ---- over all processes

    def _total(self, value: Tensor) -> Tensor:
        added: Tensor = self.accelerator.reduce(value, "sum")
        return added

    def _mean(self, values: Tensor, mask: Tensor) -> float:
        count, total, _ = self._total(ppo_losses.moments(values, mask)).tolist()
        return float(total / count) if count else 0.0

    # ---- what is reported and kept

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last record to what the trainer's loop reports of training."""
        if "loss" in logs:
            logs |= {name: sum(seen) / len(seen) for name, seen in self._logged.items()}
            logs["num_tokens"] = float(self._total_train_tokens)
            self._logged.clear()
        super().log(logs, start_time)

    def save_where_it_stood(self) -> None:
        """Save the end of the last whole step, after a stop that came in the middle of the next one."""
        if (
            self._after_step is None
        ):  # no step was made: the checkpoint that it began with is still the newest
            return
        newest = self.context.last_checkpoint
        if newest is not None and newest.name == f"checkpoint-{self.state.global_step}":
            return
        restore_generators(self._after_step)
        self.control.should_training_stop = True
        self._watcher.save(self)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        tokenizer: Any = self.processing_class
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            self.accelerator.unwrap_model(self.model).save(folder, state_dict)
            tokenizer.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        whole: PolicyWithValue = self.accelerator.unwrap_model(model or self.model)
        super()._load_from_checkpoint(resume_from_checkpoint, whole.policy)
        whole.load_head(Path(resume_from_checkpoint))
