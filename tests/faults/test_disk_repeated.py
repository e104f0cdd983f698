"""The same volumes again and again in random order, on one stack that is never restarted by hand."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import test_disk_full as once
from tests.faults.disk_rig import FOLDERS, stack_on_small_volumes
from tests.faults.volumes import needs_root

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, needs_root]
ROUNDS = 12
PROOFS = (
    once.test_the_brokers_store,
    once.test_the_databases_of_the_api,
    once.test_the_database_of_the_scheduler,
    once.test_the_folder_of_the_jobs,
    once.test_the_folder_of_the_checkpoints,
    once.test_the_logs_of_the_services,
)


def test_disks_that_fill_again_and_again(tmp_path: Path, tiny_model: Path, seed: int) -> None:
    rng = random.Random(seed)
    chosen = [proof for _ in range(ROUNDS // len(PROOFS)) for proof in PROOFS]
    rng.shuffle(chosen)
    print("seed", seed, [proof.__name__ for proof in chosen])
    with stack_on_small_volumes(tmp_path / "home", tiny_model, *FOLDERS) as rig:
        for proof in chosen:
            proof(rig)
        report = rig.scene.finish("full disks", seed, Counter(), 120)
        print(report)
        assert report.violations == [], str(report)
