"""Bugs that a test plants into the processes of its own stack: this folder on PYTHONPATH and TRAINYARD_PLANT naming one."""

from __future__ import annotations

import importlib
import os
import sys

PLANTS = {
    "reason kept": (
        "services.scheduler",
        "services.scheduler.core.leases",
        "_reconnect",
        "draft.change(job, Change.RECONNECTED, reason=reason)",
        "pass",
    ),
    "silence not shown": (
        "services.scheduler",
        "services.scheduler.core.leases",
        "_disconnect",
        "draft.change(job, Change.DISCONNECTED, reason=Reason.DISCONNECTED)",
        "pass",
    ),
    "spool dropped": (
        "services.gpu_agent",
        "services.gpu_agent.relay",
        "Relay._settle",
        "    now = self._clock.boot()",
        (
            "    now = self._clock.boot()\n"
            '    if stream.kind != "run" and any(isinstance(r, BusError) for r in results):\n'
            "        stream.settle([True] * len(results), now)\n"
            "        stream.confirm(stream.published.seq, now)\n"
            "        return"
        ),
    ),
    "not fenced": (
        "services.api",
        "services.api.projections.telemetry",
        "_note_attempt",
        "older.fenced = True",
        "older.fenced = False",
    ),
    "placed again too early": (
        "services.scheduler",
        "services.scheduler.core.leases",
        "_watch",
        "silent > limits.requeue_after",
        "silent > limits.silent_after",
    ),
    "unknown checkpoint taken": (
        "services.gpu_agent",
        "services.gpu_agent.hooks.resume",
        "_went_before",
        "\n    return False",
        "\n    return True",
    ),
}
"""Name → service, module, function, what stands there, what stands there instead."""


def _grow(name: str) -> None:
    service, module, path, old, new = PLANTS[name]
    if service not in sys.orig_argv:
        return
    from pytest import MonkeyPatch  # noqa: PLC0415, PT013 - only in a process with a bug

    from tests.faults.simulation.plant import plant  # noqa: PLC0415

    owner = importlib.import_module(module)
    *outer, function = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    plant(MonkeyPatch(), owner, function, old, new)


if "TRAINYARD_PLANT" in os.environ:
    _grow(os.environ["TRAINYARD_PLANT"])
