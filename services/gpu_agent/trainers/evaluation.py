"""Greedy answers to evaluation prompts, judged by the job's rule, else compared with the reference answers: `eval_accuracy`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.gpu_agent.trainers import ranks
from services.gpu_agent.trainers.context import Sample, TrainContext
from services.gpu_agent.trainers.encoding import Prompt
from services.gpu_agent.trainers.matching import matches
from services.gpu_agent.trainers.rewarding import Scorer
from services.gpu_agent.trainers.rollout_report import sample_of
from services.gpu_agent.trainers.rollouts import Rollout, RolloutPrompt
from services.gpu_agent.trainers.writing import Written, write_greedily

_MIN_NEW_TOKENS = 16
_BATCH_AT_LEAST = 16
SHOWN_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote for one prompt; `correct` is None where nobody could say."""

    prompt: Prompt
    completion: str
    correct: bool | None
    truncated: bool
    """It did not end by itself."""
    sample: Sample


class AnswerChecker:
    """Generates and checks answers; the prompts are tokenized once."""

    def __init__(
        self,
        tokenizer: Any,
        prompts: list[Prompt],
        context_length: int,
        batch_size: int,
        scorer: Scorer | None = None,
    ) -> None:
        """`batch_size`: answers written side by side (`written_together`). `scorer`: the rule of `reward_fn_*`; None: answers must match the reference exactly (`matching`)."""
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._scorer = scorer
        self._prompts = prompts
        self._ids = [
            tokenizer(p.text, add_special_tokens=p.special_tokens)["input_ids"][
                -context_length + 1 :
            ]
            for p in prompts
        ]
        # An answer twice as long as the longest reference can no longer be that reference with room to think before it.
        references = tokenizer([p.reference for p in prompts], add_special_tokens=False)[
            "input_ids"
        ]
        wanted = 2 * max(len(ids) for ids in references) + _MIN_NEW_TOKENS
        self._new_tokens = max(1, min(wanted, context_length - max(len(ids) for ids in self._ids)))

    def close(self) -> None:
        """End the scorer."""
        if self._scorer is not None:
            self._scorer.close()

    def answers(self, model: Any, give_way: Callable[[], None]) -> list[Answer]:
        """Answer every prompt greedily. `give_way` is called before each batch, and before the answers are judged."""
        written = write_greedily(
            model, self._tokenizer, self._ids, self._new_tokens, self._batch_size, give_way
        )
        if self._scorer is None:
            return [_compared(p, w) for p, w in zip(self._prompts, written, strict=True)]
        give_way()
        rollouts = [_rollout(n, p, w) for n, (p, w) in enumerate(zip(self._prompts, written, strict=True))]  # fmt: skip
        scorer = self._scorer
        verdicts = ranks.first_does(lambda: scorer.score(rollouts, "eval"))
        plan = scorer.plan
        return [
            Answer(p, r.completion, _right(plan.measured(v), plan.right_from), r.truncated, sample_of(r, v))
            for p, r, v in zip(self._prompts, rollouts, verdicts, strict=True)
        ]  # fmt: skip


def written_together(batch_size: int, oom_halvings: int) -> int:
    """Return how many answers are written side by side: at least 16; once memory ran out no more than training holds."""
    if oom_halvings:
        return max(1, batch_size >> oom_halvings)
    return max(batch_size, _BATCH_AT_LEAST)


def accuracy(answers: Sequence[Answer]) -> dict[str, float]:
    """Return `eval_accuracy` among the answers that could be judged; {} where none could."""
    judged = [a.correct for a in answers if a.correct is not None]
    return {"eval_accuracy": sum(judged) / len(judged)} if judged else {}


def show(context: TrainContext, step: int, answers: Sequence[Answer]) -> None:
    """Write some of the answers, for people to read."""
    for answer in answers[:SHOWN_SAMPLES]:
        context.sample(step, answer.sample)


def add_answers(trainer: Any, checker: AnswerChecker, output: Any) -> None:
    """Let the trainer's model answer, add `eval_accuracy` to the `output` of its evaluation, and show some of the answers.

    Raises StopAsked between two batches where a stop was asked for.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    with trainer.compute_loss_context_manager():
        answers = checker.answers(model, trainer.context.give_way)
    output.metrics.update(accuracy(answers))
    show(trainer.context, trainer.state.global_step, answers)


def _compared(prompt: Prompt, written: Written) -> Answer:
    correct = matches(written.text, prompt.reference)
    score = float(correct)
    sample = Sample(
        prompt.shown,
        written.text,
        score,
        {"exact_match": score},
        truncated=written.truncated,
        reference=prompt.reference,
    )
    return Answer(prompt, written.text, correct, written.truncated, sample)


def _rollout(number: int, prompt: Prompt, written: Written) -> Rollout:
    asked = RolloutPrompt(number, prompt.text, (), prompt.shown, prompt.reference, prompt.row)
    return Rollout(asked, written.text, written.truncated, tokens=written.tokens)


def _right(value: float | None, right_from: float) -> bool | None:
    return None if value is None else value >= right_from
