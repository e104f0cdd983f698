"""Where the attempt goes on: the newest checkpoint whose every byte is as written; what a cut-short save left is removed."""

from __future__ import annotations

import contextlib
import json

from services.gpu_agent import checkpoint_store
from services.gpu_agent.hooks.context import HookContext, Refusal
from shared.runs import write_atomic_json


def check(context: HookContext) -> Refusal | None:
    """Choose the checkpoint; damaged ones are named in the log and skipped. Never refuses.

    Where the attempt before this one ran elsewhere, one that the scheduler does not know is skipped too: it was saved
    after that host was cut off, and the steps that led to it will never be shown. Where it has thinned out the newest that the
    scheduler knows, what it left in its place counts after all: a hole in the curve is less than all that was trained.
    """
    folder = context.checkpoint_dir
    removed = checkpoint_store.sweep_leftovers(folder)
    if removed:
        context.notes.append(("INFO", f"Removed unfinished checkpoints: {', '.join(removed)}"))
    if not context.entry.resume:
        return None
    known = context.entry.checkpoints
    complete = checkpoint_store.list_complete(folder)
    there = {c.step for c in complete}
    moved = max(known, default=-1) in there and not _went_before(context)
    foreign = _skipped_before(context)
    skipped = [c for c in complete if c.manifest_hash in foreign or (moved and c.step not in known)]
    if skipped:
        # a later attempt here must not take them for its predecessor's
        hashes = [c.manifest_hash for c in skipped]
        write_atomic_json(context.attempt_files.skipped, {"manifests": hashes})
    context.skipped = frozenset(c.step for c in skipped)
    for found in complete:
        if found.step in context.skipped:
            text = f"{found.path} was saved on a host that was cut off, and is skipped"
            context.notes.append(("INFO", text))
            continue
        problem = checkpoint_store.verify(found.path)
        if problem is None:
            context.resume_from = found.path
            context.notes.append(("INFO", f"Resuming from {found.path}"))
            return None
        context.notes.append(("WARNING", f"{found.path} is damaged and is skipped: {problem}"))
    context.notes.append(("INFO", "No checkpoint to resume from; starting from the model."))
    return None


def _went_before(context: HookContext) -> bool:
    """Tell whether the attempt before this one, but for those that never started, ran on this host."""
    for number in range(context.entry.attempt - 1, 0, -1):
        files = context.job_files.attempt(number)
        if files.pid.exists():
            return True
        if not files.root.exists():
            return False
    return False


def _skipped_before(context: HookContext) -> set[str]:
    """Return the manifests of what earlier attempts on this host have skipped."""
    found: set[str] = set()
    for number in range(1, context.entry.attempt):
        with contextlib.suppress(OSError, ValueError, KeyError):
            document = json.loads(context.job_files.attempt(number).skipped.read_bytes())
            found |= set(document["manifests"])
    return found
