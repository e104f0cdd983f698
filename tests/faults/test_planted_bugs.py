"""Bugs planted in the product are found by the proofs of real processes: a proof that finds nothing proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.faults.pauses import frozen_hosts
from tests.faults.planting import Plant, planted
from tests.faults.proof import cut_saves, kills, wiped_broker
from tests.faults.scene import Report

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]
Proof = Callable[[Path, Path, int, Mapping[str, str]], Report]
SHORT = 60.0
"""Seconds to settle: a job that hangs is a finding, and the proof need not wait longer for it."""


def killing(home: Path, model: Path, seed: int, env: Mapping[str, str]) -> Report:
    return kills(
        home, model, seed, count=15, seconds=40, jobs=6, keep=6, pause=0.3, settle=SHORT, env=env
    )


def freezing(home: Path, model: Path, seed: int, env: Mapping[str, str]) -> Report:
    """The agent alone for an odd seed, its whole host for an even one."""
    return frozen_hosts(home, model, seed, rounds=2, settle=120, env=env)


def cutting(home: Path, model: Path, seed: int, env: Mapping[str, str]) -> Report:
    return cut_saves(home, model, seed, count=4, seconds=40, settle=60, env=env)


def wiping(home: Path, model: Path, seed: int, env: Mapping[str, str]) -> Report:
    return wiped_broker(home, model, seed, settle=40, env=env)


BUGS: dict[str, tuple[Plant, Proof, set[str]]] = {
    "shim takes no lock": (
        Plant(
            "services/gpu_agent/shim.py",
            "                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n                break",
            "                break",
        ),
        killing,
        # the agent takes every run for ended and ends it
        {
            "two attempts alive at once",
            "process alive after the job's end",
            "wrong ending",
            "not ended",
        },
    ),
    "attempt number used again": (
        Plant(
            "services/scheduler/core/assign.py",
            "number = max(job.state.attempt, job.attempt_floor) + 1",
            "number = max(job.state.attempt, 1)",
        ),
        killing,
        {"attempt not fenced"},
    ),
    "cancel not delivered": (
        Plant(
            "services/scheduler/core/requests.py",
            'ask_to_stop(draft, replace(job, resume_after_stop=False), "cancel")',
            'draft.change(job, Change.STOPPING, stop_requested="cancel", reason=Reason.STOPPING)',
        ),
        killing,
        {"not ended", "trains on after its cancel"},
    ),
    "agent starts again at the end of the file": (
        Plant(
            "services/gpu_agent/kind_stream.py",
            '        self.confirmed_seq = int(stored["confirmed_seq"])\n',
            "        if self.kind == 'met' and self.path.exists():\n"
            "            published = confirmed = Position(published.seq, self.path.stat().st_size)\n"
            '        self.confirmed_seq = int(stored["confirmed_seq"])\n',
        ),
        killing,
        {"step missing or doubled"},
    ),
    "a stale attempt's metrics are stored": (
        Plant("services/api/projections/telemetry.py", "elif row.fenced and", "elif False and"),
        freezing,
        {"stale write stored"},
    ),
    "a stale attempt's facts are folded": (
        Plant(
            "services/scheduler/core/facts.py",
            "    if run is not None and (run.attempt, run.host) == (arrived.attempt, arrived.host):",
            "    if run is not None:",
        ),
        freezing,
        {
            "not exactly one terminal event",
            "attempt not fenced",
            "stale fact accepted",
            "wrong ending",
        },
    ),
    "shim does not watch its lease": (
        Plant("services/gpu_agent/shim.py", "        if not self.active:", "        if True:"),
        freezing,
        {"two attempts alive at once"},
    ),
    "checkpoint announced before it is sealed": (
        Plant(
            "services/gpu_agent/trainers/saving.py",
            "            _write_files(trainer, temporary)\n",
            "            final = temporary.parent / checkpoint_store.folder_name(step)\n"
            "            early = Checkpoint(step, final, self._kind, 1, '0' * 64, time.time())\n"
            "            context.checkpoint(early, best=False, last=False)\n"
            "            _write_files(trainer, temporary)\n",
        ),
        cutting,
        {"checkpoint listed too early"},
    ),
    "requests are not published again": (
        Plant(
            "services/api/outbox.py",
            "            col(RequestRow.epoch) != epoch,\n",
            '            col(RequestRow.epoch) == "",\n',
        ),
        wiping,
        {"not ended"},
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, tmp_path: Path, tiny_model: Path) -> None:
    plant, proof, rules = BUGS[bug]
    env = planted(tmp_path / "product", plant)
    report = proof(tmp_path / "home", tiny_model, 1, env)
    print(f"{bug}: {report}")
    assert {v.rule for v in report.violations} & rules, str(report)


@pytest.mark.parametrize("proof", [killing, freezing, cutting, wiping])
def test_without_a_bug_nothing_is_found(proof: Proof, tmp_path: Path, tiny_model: Path) -> None:
    """The same proofs, as short as they are here: what they find above is the bug and not their haste."""
    env = planted(tmp_path / "product")
    report = proof(tmp_path / "home", tiny_model, 1, env)
    print(report)
    assert report.violations == [], str(report)
