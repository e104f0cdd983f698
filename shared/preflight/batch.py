"""Batch arithmetic: what one optimizer step holds, how it is cut for a device, and how many steps a run takes."""

import math
from dataclasses import dataclass

from shared.preflight.finding import Finding

GROUPED = ("grpo", "gspo")
ROLLOUT = ("ppo", *GROUPED)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One optimizer step in figures.

    `per_device` and `accumulation` are what the trainer gets; `effective` counts sequences per optimizer step over all
    devices (completions for ppo, grpo and gspo, pairs for dpo); `prompts_per_step` counts dataset rows.
    `eval_batch` is a legal evaluation batch per device.
    """

    per_device: int
    accumulation: int
    effective: int
    prompts_per_step: int
    eval_batch: int
    notes: tuple[Finding, ...] = ()


def arrange(  # the six figures that decide a batch
    algorithm: str,
    batch_size: int,
    gradient_accumulation_steps: int = 1,
    *,
    rollout_n: int = 1,
    world_size: int = 1,
    max_micro: int | None = None,
) -> BatchPlan | Finding:
    """Turn the user's figures into what the trainer takes, or say why that cannot be done.

    sft, dpo, reward_model: `batch_size` rows a device, times accumulation, times devices. ppo, grpo, gspo:
    `batch_size` counts the prompts of one step over all devices, `rollout_n` the completions of each (ppo: one is
    enough, for its value head is the baseline; grpo and gspo compare at least two);
    their product is cut into micro batches of at most `max_micro`, in at least `gradient_accumulation_steps` pieces, so
    that the generation batch (micro x devices x pieces) is divisible by `rollout_n`.
    """
    if min(batch_size, gradient_accumulation_steps, rollout_n, world_size) < 1 or (
        max_micro is not None and max_micro < 1
    ):
        return Finding(
            "batch_invalid",
            "batch_size",
            "batch_size, gradient_accumulation_steps, rollout_n and the number of devices must be 1 or more.",
            "batch_size、gradient_accumulation_steps、rollout_n 和设备数都必须不小于 1。",
            value=str(batch_size),
            allowed=">= 1",
        )
    if algorithm not in ROLLOUT:
        return _rows_per_device(batch_size, gradient_accumulation_steps, world_size, max_micro)
    if algorithm in GROUPED and rollout_n < 2:
        return Finding(
            "group_too_small",
            "rollout_n",
            f"{algorithm} compares the completions of one prompt, so rollout_n must be 2 or more (4 to 8 is usual).",
            f"{algorithm} 需要比较同一提示的多个回答，rollout_n 至少为 2（常用 4 到 8）。",
            value=str(rollout_n),
            allowed=">= 2",
        )
    return _completions(batch_size, gradient_accumulation_steps, rollout_n, world_size, max_micro)


def ppo_piece(
    prompts: int, rollout_n: int, accumulation: int, *, minibatches: int, world_size: int = 1
) -> int:
    """Return the most completions in one pass of PPO with gradients, on one device.

    What a device has of a rollout is dealt to `minibatches`, one an update, and each is cut into `accumulation` pieces.
    """
    own = max(1, prompts // world_size) * rollout_n
    minibatch = -(-own // minibatches)
    return -(-minibatch // accumulation)


def _rows_per_device(batch: int, accumulation: int, world: int, most: int | None) -> BatchPlan:
    pieces = _pieces(batch, most)
    micro = batch // pieces
    total = batch * accumulation * world
    return BatchPlan(micro, accumulation * pieces, total, total, micro)


def _completions(
    prompts: int, accumulation: int, group: int, world: int, most: int | None
) -> BatchPlan | Finding:
    total = prompts * group
    if total % world:
        step = world // math.gcd(group, world)
        below, above = prompts // step * step, -(-prompts // step) * step
        valid = " or ".join(str(count) for count in (below, above) if count > 0)
        return Finding(
            "batch_not_divisible",
            "batch_size",
            f"batch_size {prompts} x rollout_n {group} = {total} completions cannot be shared by {world} devices. Set batch_size to {valid}.",
            f"batch_size {prompts} × rollout_n {group} = {total} 个回答，无法平均分给 {world} 个设备。请把 batch_size 设为 {valid.replace(' or ', ' 或 ')}。",
            value=str(prompts),
            allowed=valid,
        )
    share = total // world
    wanted = min(accumulation, share)
    pieces = next(
        count
        for count in range(wanted, share + 1)
        if share % count == 0 and (most is None or share // count <= most)
    )
    notes: tuple[Finding, ...] = ()
    if pieces != accumulation and accumulation > 1:
        notes = (_rearranged(accumulation, pieces, share // pieces),)
    return BatchPlan(
        share // pieces,
        pieces,
        total,
        prompts,
        group * max(1, min(share // pieces, most or share) // group),
        notes,
    )


def _pieces(batch: int, most: int | None) -> int:
    return next(
        count
        for count in range(1, batch + 1)
        if batch % count == 0 and (most is None or batch // count <= most)
    )


def _rearranged(asked: int, made: int, micro: int) -> Finding:
    return Finding(
        "accumulation_arranged",
        "gradient_accumulation_steps",
        f"{asked} does not divide the completions of one step; {made} pieces of {micro} are used instead.",
        f"{asked} 不能整除每一步的回答数，已改为分 {made} 次、每次 {micro} 个。",
        value=str(asked),
        allowed=str(made),
        severity="warning",
    )


def total_steps(
    plan: BatchPlan,
    algorithm: str,
    rows: int,
    num_epochs: float = 1.0,
    max_steps: int | None = None,
    world_size: int = 1,
) -> int | Finding:
    """Optimizer steps of a run (ppo: rollouts); `max_steps` wins over epochs.

    Follows transformers 5 (a last, smaller batch counts) and, for grpo, gspo and ppo, the samplers that drop it. With
    packing the real number is smaller, so this is an upper bound there.
    """
    if max_steps is not None and max_steps > 0:
        return max_steps
    if algorithm in ROLLOUT:
        per_epoch = rows // plan.prompts_per_step
        if per_epoch == 0:
            return Finding(
                "dataset_smaller_than_batch",
                "batch_size",
                f"The dataset has {rows} rows, one step takes {plan.prompts_per_step} prompts. Set batch_size to {max(rows, 1)} or less, or add rows.",
                f"数据集只有 {rows} 条，而每一步需要 {plan.prompts_per_step} 条提示。请把 batch_size 设为不大于 {max(rows, 1)}，或增加数据。",
                value=str(plan.prompts_per_step),
                allowed=f"<= {max(rows, 1)}",
            )
    else:
        batches = math.ceil(rows / (plan.per_device * world_size))
        per_epoch = max(1, math.ceil(batches / plan.accumulation))
    return max(1, math.ceil(per_epoch * num_epochs))
