"""Plants a bug in a copy of the product, for a stack of real processes: what `simulation.plant` does within one process."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.stack import ROOT

PACKAGES = ("services", "shared", "trainyard")


@dataclass(frozen=True)
class Plant:
    """`old`, which must stand exactly once in `file`, becomes `new`."""

    file: str
    old: str
    new: str


def planted(folder: Path, *plants: Plant) -> dict[str, str]:
    """Copy the product to `folder` with the bugs in it; return the environment in which every process takes the copy.

    Raises AssertionError when the source has changed so that a bug cannot be planted any more.
    """
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "datasets").symlink_to(ROOT / "datasets")
    for plant in plants:
        path = folder / plant.file
        source = path.read_text()
        assert source.count(plant.old) == 1, f"{plant.file}: {source.count(plant.old)} times"
        path.write_text(source.replace(plant.old, plant.new))
    return {"PYTHONPATH": str(folder)}
