"""The OpenAPI document tells the truth: a share of what `make bench-schema` asks, and planted lies are found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.hostile.fuzzing import fuzz
from tests.hostile.target import Target

pytestmark = [pytest.mark.e2e]


@pytest.mark.parametrize("known", [True, False], ids=["of what exists", "of anything"])
def test_no_answer_is_a_5xx_or_breaks_the_document(
    target: Target, tmp_path: Path, known: bool
) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    report = fuzz(target, tmp_path, seed=seed, seconds=15, known=known)
    assert report.sound, f"seed {seed}\n{report.told}"
    assert report.cases > 200
    assert target.http.get("/readyz").status_code == 200
