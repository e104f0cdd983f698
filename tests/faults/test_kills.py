"""Random kills and stops of every part while tiny jobs run: no promise is broken. The seed is in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.proof import kills

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]


def test_random_kills_break_no_promise(tmp_path: Path, tiny_model: Path, seed: int) -> None:
    report = kills(tmp_path, tiny_model, seed, count=40, seconds=30, jobs=6, pause=0.3)
    print(report)
    assert report.violations == [], str(report)
    assert sum(report.faults.values()) >= 20, str(report)


def test_sixty_kills_while_twenty_jobs_run(tmp_path: Path, tiny_model: Path, seed: int) -> None:
    report = kills(tmp_path, tiny_model, seed, count=60, seconds=90, jobs=20, settle=600)
    print(report)
    assert report.violations == [], str(report)
    assert sum(report.faults.values()) >= 50, str(report)
