"""The broker's store is deleted while all is stopped: SQL and spools bring everything back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.proof import wiped_broker

pytestmark = pytest.mark.e2e


def test_a_wiped_broker_loses_no_unfinished_job(
    tmp_path: Path, tiny_model: Path, seed: int
) -> None:
    report = wiped_broker(tmp_path, tiny_model, seed)
    print(report)
    assert report.violations == [], str(report)
