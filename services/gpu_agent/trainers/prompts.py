"""The prompts that ppo, grpo and gspo answer: read and checked as preflight does, rendered as SFT renders the same text."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from services.gpu_agent.trainers import examples
from services.gpu_agent.trainers.encoding import ExampleEncoder
from services.gpu_agent.trainers.examples import Example
from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.rollouts import LengthPlan, RolloutPrompt, share_context
from services.gpu_agent.trainers.session import Session
from services.gpu_agent.trainers.settings import RolloutSettings
from shared.jobs.reasons import Reason
from shared.preflight.rows import Row


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts that fit, and how the context is shared with their completions."""

    kept: list[RolloutPrompt]
    plan: LengthPlan
    left_out: int


def training_prompts(session: Session[Any]) -> Prompts:
    """Read the training prompts; those that leave a completion no room are counted, reported and left out.

    Raises TrainingFailure where the data cannot be used, or no prompt fits.
    """
    spec, chosen = session.spec, session.settings
    found = _read(session, spec.train_data_path, "train_data_path", None)
    plan = share_context(
        [len(p.ids) for p in found], chosen.context_length, chosen.max_completion_length
    )
    kept = [p for p in found if len(p.ids) <= plan.prompt]
    left_out = len(found) - len(kept)
    session.context.info(f"{len(kept)} prompts; completions of at most {plan.completion} tokens")
    if left_out:
        session.context.warning(
            f"{left_out} of {len(found)} prompts have more than {plan.prompt} tokens and are left out: context_length "
            f"{chosen.context_length} must hold prompt and completion. Raise it, or lower max_completion_length."
        )
    if not kept:
        raise TrainingFailure(
            Reason.DATASET_INVALID,
            f"No prompt of the train dataset fits: the {len(found)} there have more than {plan.prompt} tokens each. Raise context_length "
            f"({chosen.context_length}), or lower max_completion_length ({chosen.max_completion_length}).",
            f"训练集中没有可用的提示：共 {len(found)} 条，均超过 {plan.prompt} 个词元。请增大 context_length（{chosen.context_length}）或减小 max_completion_length（{chosen.max_completion_length}）。",
        )
    return Prompts(_numbered(kept), plan, left_out)


def evaluation_prompts(session: Session[Any], plan: LengthPlan) -> list[RolloutPrompt]:
    """Return the first `eval_samples` prompts of the evaluation data that fit; [] where there is no such data."""
    path = session.spec.eval_data_path
    if path is None:
        return []
    found = _read(session, path, "eval_data_path", session.settings.eval_samples)
    limit = session.settings.context_length - plan.completion
    kept = [p for p in found if len(p.ids) <= limit]
    if len(kept) < len(found):
        session.context.warning(
            f"{len(found) - len(kept)} of {len(found)} evaluation prompts are too long and are left out."
        )
    if not kept:
        raise TrainingFailure(
            Reason.DATASET_INVALID,
            "No prompt of the eval dataset fits within context_length; raise it, or shorten the prompts.",
            "评估集中没有提示能放入 context_length；请增大它或缩短提示。",
        )
    return _numbered(kept)


def _read(
    session: Session[RolloutSettings], path: str, field: str, limit: int | None
) -> list[RolloutPrompt]:
    spec = session.spec
    key = spec.config.get("reward_fn_answer_key") or "solution"
    checked = examples.checked_rows(path, field=field, algorithm=spec.algorithm, answer_key=key)
    rows = list(islice(checked, limit))
    if not rows:
        raise TrainingFailure(
            Reason.DATASET_INVALID, f"{field} holds no rows.", f"{field} 没有数据。"
        )
    encoder = ExampleEncoder(session.loaded.tokenizer, session.settings.context_length)
    asked = [
        Example(prompt=str(row.values["prompt"]), response="", place=row.place) for row in rows
    ]
    rendered = encoder.prompts(asked, len(asked))
    ids = session.loaded.tokenizer(
        [p.text for p in rendered],
        add_special_tokens=rendered[0].special_tokens,
        return_attention_mask=False,
    )["input_ids"]
    return [
        RolloutPrompt(n, p.text, tuple(i), p.shown, _solution(row, key), row.values)
        for n, (p, i, row) in enumerate(zip(rendered, ids, rows, strict=True))
    ]


def _solution(row: Row, key: str) -> str | None:
    value = row.values.get(key)
    return None if value is None else str(value)


def _numbered(prompts: list[RolloutPrompt]) -> list[RolloutPrompt]:
    return [
        RolloutPrompt(n, p.text, p.ids, p.shown, p.solution, p.row) for n, p in enumerate(prompts)
    ]
