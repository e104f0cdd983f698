"""Bugs planted in the product are found by the partitions, each by the rule that it breaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.partitions.cases import Break, Case
from tests.faults.partitions.cuts import Way
from tests.faults.partitions.runs import run
from tests.faults.planting import Plant, planted

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]
LEASES = "services/scheduler/core/leases.py"
STAYS = Case("keep", (Break(Way.BOTH),))
STAYS_LONG = Case("keep", (Break(Way.BOTH, 16.0),))
"""Longer than the agent waits for the broker to take a message."""
MOVES = Case("stop_and_requeue", (Break(Way.BOTH),), shared=True)
MOVES_DEAF = Case("stop_and_requeue", (Break(Way.TO_AGENT),), shared=True)
BUGS: dict[str, tuple[Plant, Case, set[str]]] = {
    "the reason is not cleared": (
        Plant(LEASES, "draft.change(job, Change.RECONNECTED, reason=reason)", "pass"),
        STAYS,
        {"disconnected without cause"},
    ),
    "silence is not shown": (
        Plant(LEASES, "draft.change(job, Change.DISCONNECTED, reason=Reason.DISCONNECTED)", "pass"),
        STAYS,
        {"cut off and not shown"},
    ),
    "the agent drops what it spooled while cut off": (
        Plant(
            "services/gpu_agent/relay.py",
            "        error = next((r for r in results if isinstance(r, BusError)), None)\n",
            "        error = next((r for r in results if isinstance(r, BusError)), None)\n"
            '        if error is not None and stream.kind != "run":\n'
            "            stream._queue.clear()\n"
            "            stream._queued_bytes = 0\n"
            "            stream.confirm(stream.read.seq, now)\n",
        ),
        STAYS_LONG,
        {"step missing or doubled", "gap in the curve"},
    ),
    "a stale attempt is not fenced": (
        Plant(
            "services/api/projections/telemetry.py", "older.fenced = True", "older.fenced = False"
        ),
        MOVES,
        {"stale write stored"},
    ),
    "the scheduler does not wait for the shim": (
        Plant(
            LEASES, "host.seen.boot > limits.requeue_after", "host.seen.boot > limits.silent_after"
        ),
        MOVES,
        {"placed again too early"},
    ),
    "a checkpoint of the cut-off host is taken up": (
        Plant(
            "services/gpu_agent/hooks/resume.py",
            "(moved and c.step not in known)",
            "(False and c.step not in known)",
        ),
        MOVES,
        {"gap in the curve"},
    ),
    "a checkpoint is told before the metrics that led to it": (
        Plant(
            "services/gpu_agent/core/holding.py", "if first is None:", "if first is None or True:"
        ),
        MOVES_DEAF,
        {"gap in the curve"},
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, tmp_path: Path, tiny_model: Path, seed: int) -> None:
    plant, case, rules = BUGS[bug]
    env = planted(tmp_path / "product", plant)
    outcome = run(tmp_path / "home", tiny_model, seed, f"planted: {bug}", [case], env=env)
    assert rules <= {v.rule for v in outcome.report.violations}, str(outcome.report)
