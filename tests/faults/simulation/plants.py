"""Bugs planted in product code, each of which breaks a promise that the simulation looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from services.api.db.positions import Position
from services.api.projections import telemetry, verdicts
from services.api.projections.fence import fresh_items
from services.gpu_agent import shim
from services.gpu_agent.core import holding, reconcile
from services.gpu_agent.heartbeat import HeartbeatLoop
from services.scheduler import leader
from services.scheduler.core import assign, facts, requests
from services.scheduler.core.decisions import Decision
from services.scheduler.core.inputs import Input
from services.scheduler.core.state import Limits
from tests.faults.simulation import runner
from tests.faults.simulation.api import ApiNode
from tests.faults.simulation.host import AttemptDir
from tests.faults.simulation.plant import plant
from tests.faults.simulation.scheduler import SchedulerNode

Plant = Callable[[pytest.MonkeyPatch], None]


def in_code(owner: Any, name: str, old: str, new: str) -> Plant:
    return lambda patch: plant(patch, owner, name, old, new)


def no_fence_at_the_scheduler(patch: pytest.MonkeyPatch) -> None:
    old = "if run is not None and (run.attempt, run.host) == (arrived.attempt, arrived.host):"
    plant(patch, facts, "fold", old, "if run is not None:")


def no_fence_at_the_main_database(patch: pytest.MonkeyPatch) -> None:
    old = "if row.final_seq is None and _moved(session, subject, job.attempt):"
    plant(patch, verdicts, "verdict", old, "if False:")
    patch.setattr("services.api.projections.main.verdict", verdicts.verdict)


def scheduler_acknowledges_before_its_commit(patch: pytest.MonkeyPatch) -> None:
    def store(
        node: SchedulerNode,
        inputs: Sequence[Input],
        decisions: Sequence[Decision],
        position: tuple[str, str, int] | None,
    ) -> None:
        node.save_position(position)
        if position is not None:
            node.crash("between")
        node.db.apply(decisions)
        node.observe(inputs, decisions)

    patch.setattr(SchedulerNode, "store", store)


def api_acknowledges_before_its_commit(patch: pytest.MonkeyPatch) -> None:
    """For both databases at once: one that lies behind takes the other back with it."""
    before: dict[str, Position] = {}

    def store(node: ApiNode, db: str, stream: str, items: Sequence[Any], reached: Position) -> None:
        if db == "main" or stream == "METRICS":
            before.update({name: node.positions[name][stream] for name in node.positions})
            for name in node.positions:
                node.save_position(name, stream, reached)
            node.crash("between")
        node.apply(db, stream, fresh_items(before[db], items))

    patch.setattr(ApiNode, "store", store)


def reconcile_with(patch: pytest.MonkeyPatch, name: str, old: str, new: str) -> None:
    plant(patch, reconcile, name, old, new)
    patch.setattr(runner, "reconcile", reconcile.reconcile)


def no_drift_at_the_scheduler(patch: pytest.MonkeyPatch) -> None:
    def requeue_after(limits: Limits) -> float:
        return limits.stop_after + limits.kill_grace + limits.requeue_margin

    patch.setattr(Limits, "requeue_after", property(requeue_after))


PLANTS: dict[str, Plant] = {
    "fence removed: scheduler": no_fence_at_the_scheduler,
    "fence removed: main database": no_fence_at_the_main_database,
    "fence removed: telemetry": in_code(
        telemetry, "_admit", "elif row.fenced and", "elif False and"
    ),
    "acknowledged before commit: scheduler": scheduler_acknowledges_before_its_commit,
    "acknowledged before commit: api": api_acknowledges_before_its_commit,
    "attempt used again": in_code(
        assign,
        "_assign",
        "max(job.state.attempt, job.attempt_floor) + 1",
        "max(1, job.state.attempt)",
    ),
    ">= for >: attempts on a host": lambda patch: reconcile_with(
        patch, "_wanted", "r.attempt > entry.attempt", "r.attempt >= entry.attempt"
    ),
    ">= for >: gap of requests": in_code(
        requests, "arrive", "request.req_n > answered + 1", "request.req_n >= answered + 1"
    ),
    "< for <=: repeated lines": in_code(
        telemetry, "apply_run_facts", 'event.seq <= row.seq["run"]', 'event.seq < row.seq["run"]'
    ),
    "leader not checked: transactions": in_code(
        leader, "fence", "if done.rowcount != 1:", "if False:"
    ),
    "drift omitted: shim": in_code(
        shim.LeaseWatch, "__init__", 'launch["stop_after"] * 0.98', 'launch["stop_after"]'
    ),
    "drift omitted: scheduler": no_drift_at_the_scheduler,
    "leader not checked: heartbeats": in_code(
        leader,
        "check",
        "if row is None or (row.epoch, row.holder) != (lead.epoch, lead.holder):",
        "if False:",
    ),
    "lease counted from receive": in_code(
        HeartbeatLoop, "take", "self.heard = sent", "self.heard = sent = self.clock.boot()"
    ),
    "held ignored": in_code(HeartbeatLoop, "may_start", "return named and", "return"),
    "overdue start": in_code(shim, "is_overdue", "return bool(counts and", "return bool(False and"),
    "begun after its agent gave it up": in_code(
        AttemptDir, "claims", "return self.claim == who", "return True"
    ),
    "renewed after it had run out": in_code(
        shim.LeaseWatch,
        "look",
        ' and lease["renewed"] <= self.renewed + self.after',
        "",
    ),
    "checkpoint not held": in_code(
        holding, "leaving", "if first is None:", "if first is None or True:"
    ),
    "self-stop skipped": in_code(shim.LeaseWatch, "look", "if not self.active:", "if True:"),
}
