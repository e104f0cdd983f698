"""Whether the disk holds the checkpoints that this run will keep."""

from __future__ import annotations

from services.gpu_agent.hooks.context import HookContext, Refusal
from shared.preflight.disk import check_free, estimate_checkpoints
from shared.preflight.memory import lora_parameters


def check(context: HookContext) -> Refusal | None:
    """Estimate from the model's headers; a model that is not here yet cannot be estimated."""
    report, config = context.model, context.config
    if report is None or report.parameters is None:
        return None
    lora = bool(config.get("lora_enabled"))
    estimate = estimate_checkpoints(
        report.parameters,
        trained=lora_parameters(report, int(config.get("lora_rank") or 8)) if lora else None,
        optim=str(config.get("optim") or "adamw_torch"),
        save_total_limit=int(config.get("save_total_limit") or 3),
        total_saves=_saves(config.get("max_steps"), config.get("save_steps")),
    )
    finding = check_free(context.checkpoint_dir, estimate.total_bytes)
    if finding is None:
        return None
    return Refusal.no_room(finding, context.checkpoint_dir, estimate.total_bytes)


def _saves(max_steps: object, save_steps: object) -> int | None:
    if not isinstance(max_steps, int) or not isinstance(save_steps, int):
        return None
    if max_steps <= 0 or save_steps <= 0:
        return None
    return max_steps // save_steps + 3
