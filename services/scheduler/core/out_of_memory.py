"""A run that was too large for its memory: the next attempt takes half as many rows in one forward pass, and as many in a step."""

from __future__ import annotations

from dataclasses import replace

from services.scheduler.core.state import Job
from shared.jobs.lifecycle import Bilingual
from shared.jobs.reasons import Reason
from shared.preflight.batch import BatchPlan, arrange, ppo_piece
from shared.runs import MOST_HALVINGS
from shared.specs import JobSpec
from shared.specs.ppo import PpoSpec

OUT_OF_MEMORY = frozenset({Reason.CUDA_OOM, Reason.HOST_OOM})


def micro_batch(spec: JobSpec) -> int:
    """Return the rows of one forward pass as the user asked for them; 0 where that cannot be told.

    PPO writes all completions of a step side by side and learns from them in pieces; from the first halving on it writes
    in pieces too. One halving is therefore of use even where a piece is a single completion.
    """
    if isinstance(spec, PpoSpec):
        figures = spec.batch_size, spec.rollout_n, spec.gradient_accumulation_steps
        piece = ppo_piece(*figures, minibatches=spec.ppo_minibatches, world_size=spec.num_gpus)
        return max(piece, min(2, spec.batch_size * spec.rollout_n // spec.num_gpus))
    plan = arrange(
        spec.algorithm,
        spec.batch_size,
        spec.gradient_accumulation_steps,
        rollout_n=getattr(spec, "rollout_n", 1),
        world_size=spec.num_gpus,
    )
    return plan.per_device if isinstance(plan, BatchPlan) else 0


def can_shrink(job: Job) -> bool:
    """Tell whether another attempt could take fewer rows at once than the one that ran out of memory."""
    if job.micro_batch == 0:
        return job.oom_halvings < MOST_HALVINGS
    return job.micro_batch >> job.oom_halvings > 1


def shrunk(job: Job, said: Bilingual | None) -> tuple[Job, Bilingual]:
    """Return the job with its rows halved once more, and what the user is told."""
    job = replace(job, oom_halvings=job.oom_halvings + 1)
    rows = job.micro_batch >> job.oom_halvings
    most_en = f"at most {rows} row{'s' if rows > 1 else ''}" if rows else "half as many rows"
    most_zh = f"最多 {rows} 条" if rows else "减半的条数"
    en = f"The next attempt takes {most_en} in one forward pass and accumulates more gradients, so that a step holds as many rows as before."
    zh = f"下一次尝试每次前向计算{most_zh}，并相应增加梯度累积，每一步的有效批量不变。"
    if said is None:
        return job, Bilingual(en=en, zh=zh)
    return job, Bilingual(en=f"{said.en} {en}", zh=f"{said.zh}{zh}")
