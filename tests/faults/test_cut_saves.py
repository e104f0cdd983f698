"""Kills in the middle of a save: what was cut short is never listed and never resumed from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.proof import cut_saves

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]


def test_a_save_cut_short_is_never_listed_nor_used(
    tmp_path: Path, tiny_model: Path, seed: int
) -> None:
    report = cut_saves(tmp_path, tiny_model, seed, count=10, seconds=60)
    print(report)
    assert report.violations == [], str(report)
    assert report.faults["cut a save"] >= 5, str(report)
