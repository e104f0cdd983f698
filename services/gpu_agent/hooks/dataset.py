"""The datasets: allowed paths, every row checked, and their content's hash noted with the attempt."""

from __future__ import annotations

import json
from pathlib import Path

from services.gpu_agent.hooks.context import HookContext, Refusal
from shared.jobs.reasons import Reason
from shared.preflight.dataset import DatasetReport, check_dataset
from shared.preflight.finding import Finding
from shared.preflight.paths import looks_like_hub_id, resolve_allowed
from shared.runs import write_atomic_json

_ABSENT = frozenset({"dataset_not_found", "dataset_is_directory", "path_invalid"})
_KEPT = 64
_NOTE = "datasets.json"
_seen: dict[tuple[str, int, int, str, str | None], DatasetReport] = {}
"""Reports by path, size, time of change, algorithm and answer key: a retry does not read the file again."""


def check(context: HookContext) -> Refusal | None:
    """Resolve and check `train_data_path` and `eval_data_path`."""
    for field in ("train_data_path", "eval_data_path"):
        wanted = context.config.get(field)
        if not wanted:
            continue
        resolved = _resolve(context, str(wanted), field)
        if isinstance(resolved, Refusal):
            return resolved
        setattr(context, field, str(resolved))
        if isinstance(resolved, Path):
            refusal = _check_rows(context, resolved, field)
            if refusal is not None:
                return refusal
    _compare_with_last_attempt(context)
    return None


def _resolve(context: HookContext, wanted: str, field: str) -> Path | str | Refusal:
    real = resolve_allowed(wanted, context.roots, base=context.project_root, field=field)
    if isinstance(real, Finding):
        if looks_like_hub_id(wanted):
            return wanted
        forbidden = real.code == "path_forbidden"
        return Refusal.of(real, Reason.PATH_FORBIDDEN if forbidden else Reason.DATASET_MISSING)
    if not real.exists() and looks_like_hub_id(wanted):
        return wanted
    return real


def _check_rows(context: HookContext, path: Path, field: str) -> Refusal | None:
    report = _report(context, path, field)
    if report.ok:
        context.datasets[str(path)] = report.sha256
        context.notes.append(
            ("INFO", f"{field}: {path} ({report.rows} rows, sha256 {report.sha256[:16]})")
        )
        context.notes += [("WARNING", w.message_en) for w in report.warnings[:3]]
        return None
    first = report.errors[0]
    more = report.error_count - 1
    reason = Reason.DATASET_MISSING if first.code in _ABSENT else Reason.DATASET_INVALID
    return Refusal(
        "job",
        reason,
        first.message_en + (f" {more} more rows have problems." if more else ""),
        first.message_zh + (f"另有 {more} 处问题。" if more else ""),
    )


def _report(context: HookContext, path: Path, field: str) -> DatasetReport:
    algorithm = str(context.config.get("algorithm", "sft"))
    answer_key = context.config.get("reward_fn_answer_key")
    try:
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns, algorithm, answer_key)
    except OSError:
        return check_dataset(path, algorithm, answer_key, field=field)
    if key not in _seen:
        while len(_seen) >= _KEPT:
            del _seen[next(iter(_seen))]
        _seen[key] = check_dataset(path, algorithm, answer_key, field=field)
    return _seen[key]


def _compare_with_last_attempt(context: HookContext) -> None:
    """Say so when a dataset is not what it was: a resumed run would silently train on other rows."""
    before = context.job_files.root / _NOTE
    try:
        known: dict[str, str] = json.loads(before.read_bytes())
    except (OSError, ValueError):
        known = {}
    for path, digest in context.datasets.items():
        if known.get(path, digest) != digest:
            context.notes.append(
                ("WARNING", f"{path} has changed since the last attempt of this job.")
            )
    write_atomic_json(before, context.datasets)
