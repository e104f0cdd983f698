"""A host is frozen for longer than its lease: its jobs go on elsewhere, at most a tick beside it, and it is not believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.pauses import frozen_hosts

pytestmark = pytest.mark.e2e


def test_a_host_that_slept_is_not_believed(tmp_path: Path, tiny_model: Path, seed: int) -> None:
    report = frozen_hosts(tmp_path, tiny_model, seed, rounds=2)
    print(report)
    assert report.violations == [], str(report)
    assert report.faults["attempts moved"] >= 2, str(report)
