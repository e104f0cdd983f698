"""Models: an allowed path that holds one, a checkpoint whose manifest is right, or a Hub id left to the trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from services.gpu_agent import checkpoint_store
from services.gpu_agent.hooks.context import HookContext, Refusal
from shared.jobs.reasons import Reason
from shared.preflight.finding import Finding
from shared.preflight.model import ModelReport, check_model
from shared.preflight.paths import looks_like_hub_id, resolve_allowed

_ABSENT = frozenset({"model_not_found", "not_a_model", "adapter_base_missing", "path_invalid"})


def check(context: HookContext) -> Refusal | None:
    """Resolve and check `model_path`, and every other parameter that names a model."""
    named = context.entry.model_path
    wanted = named or str(context.config.get("model_path", ""))
    found = _resolved(context, wanted, "model_path", named_by_scheduler=named is not None)
    if isinstance(found, Refusal):
        return found
    context.model_path = str(found)
    if isinstance(found, Path):
        refusal = _damaged(found, "model_path") or _unusable(context, found)
        if refusal is not None:
            return refusal
    return _check_others(context)


def _check_others(context: HookContext) -> Refusal | None:
    """Resolve `ref_model_path`, `reward_model_path`, and those of single rewards."""
    for place, path in _others(context.config):
        by_scheduler = context.entry.resolved.get(place) == path
        found = _resolved(context, path, place, named_by_scheduler=by_scheduler)
        if isinstance(found, Refusal):
            return found
        context.model_paths[place] = str(found)
        if isinstance(found, Path):
            refusal = _damaged(found, place) or _refused(check_model(found))
            if refusal is not None:
                return refusal
    return None


def _others(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field in ("ref_model_path", "reward_model_path"):
        if config.get(field):
            yield field, str(config[field])
    for index, component in enumerate(config.get("rewards") or ()):
        if component.get("reward_model_path"):
            yield f"rewards.{index}.reward_model_path", str(component["reward_model_path"])


def _resolved(
    context: HookContext, wanted: str, field: str, *, named_by_scheduler: bool
) -> Path | str | Refusal:
    """Return an allowed folder, or a Hub id. What the scheduler names is a job's checkpoint: no root holds for it."""
    roots = None if named_by_scheduler else context.roots
    real = resolve_allowed(wanted, roots, base=context.project_root, field=field)
    if isinstance(real, Finding):
        if looks_like_hub_id(wanted):
            return wanted
        forbidden = real.code == "path_forbidden"
        return Refusal.of(real, Reason.PATH_FORBIDDEN if forbidden else Reason.MODEL_MISSING)
    return wanted if not real.exists() and looks_like_hub_id(wanted) else real


def _damaged(folder: Path, field: str) -> Refusal | None:
    if not (folder / checkpoint_store.MANIFEST).is_file():
        return None
    problem = checkpoint_store.verify(folder)
    if problem is None:
        return None
    return Refusal(
        "job",
        Reason.CHECKPOINT_CORRUPT,
        f"The checkpoint {folder} cannot be used: {problem}. Choose another step in {field}.",
        f"检查点 {folder} 无法使用：{problem}。请在 {field} 中选择其他步。",
    )


def _unusable(context: HookContext, folder: Path) -> Refusal | None:
    report = check_model(folder)
    context.model = report
    for warning in report.warnings:
        context.notes.append(("WARNING", warning.message_en))
    return _refused(report)


def _refused(report: ModelReport) -> Refusal | None:
    if report.ok:
        return None
    first = report.errors[0]
    return Refusal.of(
        first, Reason.MODEL_MISSING if first.code in _ABSENT else Reason.MODEL_INVALID
    )
