"""The model: an allowed path that holds one, a checkpoint whose manifest is right, or a Hub id left to the trainer."""

from __future__ import annotations

from pathlib import Path

from services.gpu_agent import checkpoint_store
from services.gpu_agent.hooks.context import HookContext, Refusal
from shared.jobs.reasons import Reason
from shared.preflight.finding import Finding
from shared.preflight.model import check_model
from shared.preflight.paths import looks_like_hub_id, resolve_allowed

_ABSENT = frozenset({"model_not_found", "not_a_model", "adapter_base_missing", "path_invalid"})


def check(context: HookContext) -> Refusal | None:
    """Resolve and check `model_path`."""
    wanted = context.entry.model_path or str(context.config.get("model_path", ""))
    real = resolve_allowed(
        wanted,
        None
        if context.entry.model_path
        else context.roots,  # the scheduler names a job's checkpoint folder
        base=context.project_root,
        field="model_path",
    )
    if isinstance(real, Finding):
        if looks_like_hub_id(wanted):
            context.model_path = wanted
            return None
        forbidden = real.code == "path_forbidden"
        return Refusal.of(real, Reason.PATH_FORBIDDEN if forbidden else Reason.MODEL_MISSING)
    if not real.exists() and looks_like_hub_id(wanted):
        context.model_path = wanted
        return None
    context.model_path = str(real)
    return _damaged(real) or _unusable(context, real)


def _damaged(folder: Path) -> Refusal | None:
    if not (folder / checkpoint_store.MANIFEST).is_file():
        return None
    problem = checkpoint_store.verify(folder)
    if problem is None:
        return None
    return Refusal(
        "job",
        Reason.CHECKPOINT_CORRUPT,
        f"The checkpoint {folder} cannot be used: {problem}. Choose another step in model_path.",
        f"检查点 {folder} 无法使用：{problem}。请在 model_path 中选择其他步。",
    )


def _unusable(context: HookContext, folder: Path) -> Refusal | None:
    report = check_model(folder)
    context.model = report
    for warning in report.warnings:
        context.notes.append(("WARNING", warning.message_en))
    if report.ok:
        return None
    first = report.errors[0]
    return Refusal.of(
        first, Reason.MODEL_MISSING if first.code in _ABSENT else Reason.MODEL_INVALID
    )
