"""Where the attempt goes on: the newest checkpoint whose every byte is as written; what a cut-short save left is removed."""

from __future__ import annotations

from services.gpu_agent import checkpoint_store
from services.gpu_agent.hooks.context import HookContext, Refusal


def check(context: HookContext) -> Refusal | None:
    """Choose the checkpoint; damaged ones are named in the log and skipped. Never refuses."""
    folder = context.checkpoint_dir
    removed = checkpoint_store.sweep_leftovers(folder)
    if removed:
        context.notes.append(("INFO", f"Removed unfinished checkpoints: {', '.join(removed)}"))
    if not context.entry.resume:
        return None
    for found in checkpoint_store.list_complete(folder):
        problem = checkpoint_store.verify(found.path)
        if problem is None:
            context.resume_from, context.resume_step = found.path, found.step
            context.notes.append(("INFO", f"Resuming from {found.path}"))
            return None
        context.notes.append(("WARNING", f"{found.path} is damaged and is skipped: {problem}"))
    context.notes.append(("INFO", "No checkpoint to resume from; starting from the model."))
    return None
