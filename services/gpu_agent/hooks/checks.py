"""The checks before training, in order; the first refusal ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.gpu_agent.hooks import dataset, directory, environment, model, resume, space
from services.gpu_agent.hooks.context import HookContext, Refusal
from shared.jobs.reasons import Reason
from shared.log import logger

Check = Callable[[HookContext], Refusal | None]
CHECKS: tuple[Check, ...] = (
    directory.check,
    model.check,
    dataset.check,
    space.check,
    resume.check,
    environment.check,
)


def run_checks(context: HookContext, checks: Sequence[Check] = CHECKS) -> Refusal | None:
    """Run every check; it blocks (datasets are read whole), so call it in a thread. Never raises."""
    for check in checks:
        try:
            refusal = check(context)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            logger("hooks").exception("check_failed", job=context.entry.job, check=check.__module__)
            name = check.__module__.rpartition(".")[2]
            return Refusal(
                "host",
                Reason.HOST_REFUSED,
                f"The {name} check failed on the host: {type(error).__name__}: {error}"[:500],
                f"主机上的 {name} 检查出错：{type(error).__name__}: {error}"[:500],
            )
        if refusal is not None:
            return refusal
    return None
