"""Every bug that the nightly proofs plant can still be planted: the lines that it changes stand in the product, each once."""

from __future__ import annotations

import pytest

from tests.e2e.stack import ROOT
from tests.faults import test_disk_plants as disks
from tests.faults import test_planted_bugs as kills
from tests.faults import test_planted_partition_bugs as partitions
from tests.faults.planting import Plant

PLANTS: dict[str, Plant] = {
    **{bug: found[0] for bug, found in kills.BUGS.items()},
    **{bug: found[0] for bug, found in partitions.BUGS.items()},
    "nobody heals": disks.NOBODY_HEALS,
    "shows what was cut short": disks.SHOWS_WHAT_WAS_CUT_SHORT,
    "says nothing of places": disks.SAYS_NOTHING_OF_PLACES,
    "resumes nothing": disks.RESUMES_NOTHING,
}


@pytest.mark.parametrize("bug", PLANTS)
def test_the_line_to_change_stands_there_once(bug: str) -> None:
    plant = PLANTS[bug]
    assert (ROOT / plant.file).read_text().count(plant.old) == 1
    assert plant.new != plant.old
