"""Random kills and stops of every part while tiny jobs run: no promise is broken. The seed is in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.killer import WEIGHTS, kills_in
from tests.faults.proof import kills

pytestmark = pytest.mark.e2e


def test_sixty_kills_while_twenty_jobs_run(tmp_path: Path, tiny_model: Path, seed: int) -> None:
    report = kills(
        tmp_path, tiny_model, seed, count=60, seconds=900, jobs=20, keep=4, pause=0.2, settle=600
    )
    print(report)
    assert report.violations == [], str(report)
    assert kills_in(report.faults) == 60, str(report)
    assert {f"kill {name}" for name in WEIGHTS} <= set(report.faults), str(report)
