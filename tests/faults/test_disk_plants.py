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
from tests.faults.volumes import needs_root

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, needs_root]
NOBODY_HEALS = """
import sys
if "trainyard.cli.main" in sys.orig_argv:
    from trainyard.stack.core import broker_watch
    broker_watch.decide = lambda watch, look: broker_watch.Verdict(watch)
"""
SHOWS_WHAT_WAS_CUT_SHORT = """
import sys
if "services.gpu_agent.zygote" in sys.orig_argv or "services.gpu_agent.trainers" in sys.orig_argv:
    import re
    from services.gpu_agent.trainers import saving
    def keep(folder, **_):
        folder.rename(folder.parent / re.search(r"checkpoint-\\d+", folder.name)[0])
    saving.shutil = type("Kept", (), {"rmtree": staticmethod(keep)})
"""


def planted(folder: Path, bug: str) -> str:
    """Return a PYTHONPATH with which every Python of the stack begins with `bug`."""
    (folder / "plant").mkdir()
    (folder / "plant" / "sitecustomize.py").write_text(bug)
    return str(folder / "plant")


def test_a_broker_that_nobody_heals_is_found(tmp_path: Path, tiny_model: Path) -> None:
    path = planted(tmp_path, NOBODY_HEALS)
    with stack_on_small_volumes(tmp_path / "home", tiny_model, "broker", PYTHONPATH=path) as rig:
        rig.training()
        with Filled(rig.volumes["broker"]):
            requests_for(rig, 3)
        new = list(rig.scene.workload.bodies)[-1]
        with pytest.raises(AssertionError, match="not within 30 s"):
            recovered(rig, "broker", lambda: rig.job(new).status in ("RUNNING", "COMPLETED"))


def test_a_checkpoint_cut_short_and_shown_is_found(tmp_path: Path, tiny_model: Path) -> None:
    path = planted(tmp_path, SHOWS_WHAT_WAS_CUT_SHORT)
    with stack_on_small_volumes(
        tmp_path / "home", tiny_model, "checkpoints", PYTHONPATH=path
    ) as rig:
        job = rig.training()
        volume = rig.volumes["checkpoints"]
        with Filled(volume), pytest.raises(AssertionError, match="checkpoint-"):
            assert_paused_for_room(rig, job, volume.path)
