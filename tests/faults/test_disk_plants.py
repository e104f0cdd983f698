"""The proof of full disks finds bugs that are planted: a broker that nobody heals, a checkpoint cut short and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.disk_rig import (
    Filled,
    assert_paused_for_room,
    recovered,
    requests_for,
    stack_on_small_volumes,
)
from tests.faults.planting import Plant, planted
from tests.faults.volumes import needs_root

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, needs_root]
NOBODY_HEALS = Plant(
    "trainyard/stack/broker_care.py",
    "        if verdict.restart:\n",
    "        if verdict.restart and not trouble:\n",
)
SHOWS_WHAT_WAS_CUT_SHORT = Plant(
    "services/gpu_agent/trainers/saving.py",
    "            shutil.rmtree(temporary, ignore_errors=True)\n",
    "            temporary.rename(temporary.parent / checkpoint_store.folder_name(step))\n",
)
SAYS_NOTHING_OF_PLACES = Plant(
    "services/gpu_agent/trainers/failures.py",
    'f"The disk is full: {what_en} {short.en}."',
    'f"The disk is full: {what_en}."',
)
RESUMES_NOTHING = Plant(
    "services/scheduler/core/step.py",
    "            room.tick(draft)\n",
    "            pass\n",
)


def test_a_broker_that_nobody_heals_is_found(tmp_path: Path, tiny_model: Path) -> None:
    env = planted(tmp_path / "product", NOBODY_HEALS)
    with stack_on_small_volumes(tmp_path / "home", tiny_model, "broker", env=env) as rig:
        rig.training()
        with Filled(rig.volumes["broker"]):
            requests_for(rig, 3)
        new = list(rig.scene.workload.bodies)[-1]
        with pytest.raises(AssertionError, match="not within 30 s"):
            recovered(rig, "broker", lambda: rig.job(new).status in ("RUNNING", "COMPLETED"))


@pytest.mark.parametrize(
    ("plant", "found"),
    [(SHOWS_WHAT_WAS_CUT_SHORT, "checkpoint-"), (SAYS_NOTHING_OF_PLACES, "The disk is full")],
    ids=["a checkpoint cut short is shown", "the pause does not say where"],
)
def test_a_pause_that_is_not_as_promised_is_found(
    tmp_path: Path, tiny_model: Path, plant: Plant, found: str
) -> None:
    env = planted(tmp_path / "product", plant)
    with stack_on_small_volumes(tmp_path / "home", tiny_model, "checkpoints", env=env) as rig:
        job = rig.training()
        volume = rig.volumes["checkpoints"]
        with Filled(volume), pytest.raises(AssertionError, match=found):
            assert_paused_for_room(rig, job, volume.path)


def test_a_job_that_nobody_resumes_is_found(tmp_path: Path, tiny_model: Path) -> None:
    env = planted(tmp_path / "product", RESUMES_NOTHING)
    with stack_on_small_volumes(tmp_path / "home", tiny_model, "checkpoints", env=env) as rig:
        job = rig.training()
        volume = rig.volumes["checkpoints"]
        with Filled(volume):
            assert_paused_for_room(rig, job, volume.path)
        with pytest.raises(AssertionError, match="not within 30 s"):
            recovered(rig, "checkpoints", lambda: rig.job(job).status == "RUNNING")
