"""The same cuts by the kernel: a host in a network namespace, a broker reached over the router's far side. Needs root."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import ROOT, Stack, until
from tests.faults.partitions.cases import SETTINGS, Break, Case
from tests.faults.partitions.cuts import Line, Way
from tests.faults.partitions.namespaces import (
    API_PORT,
    BROKER_PORT,
    Inside,
    Wire,
    inside,
    laid_out,
    why_not,
)
from tests.faults.partitions.scene import SHELTER, Scene
from tests.faults.partitions.second_host import TRAINYARD

pytestmark = pytest.mark.e2e
KEEP, MOVE = "keep", "stop_and_requeue"
STEPS = 240
HEAL = 30.0
"""Seconds: after a cut the kernel sends again only after as long as the cut has lasted."""


@pytest.fixture
def wires() -> Iterator[tuple[Wire, ...]]:
    reason = why_not()
    if reason is not None:
        pytest.skip(f"NOT PROVEN ON THIS MACHINE: partitions by the kernel; {reason}")
    with laid_out(hosts=2) as found:
        yield found


def operated(home: Path, model: Path) -> tuple[Stack, subprocess.Popen[bytes]]:
    """Start a broker that other machines reach, and return it with a stack that is open to them: as the guide says, with a token."""
    settings = {
        **SETTINGS,
        "TRAINYARD_API_HOST": "0.0.0.0",
        "TRAINYARD_API_PORT": str(API_PORT),
        "TRAINYARD_API_TOKEN": secrets.token_hex(16),
        "TRAINYARD_NATS_URL": f"nats://127.0.0.1:{BROKER_PORT}",
        "TRAINYARD_DATA_ROOTS": f"{ROOT}:{model.parent}:{home}",
    }
    stack = Stack(home, "--no-agent", **settings)
    home.mkdir(parents=True)
    with (home / "broker.log").open("ab") as log:
        broker = subprocess.Popen(
            [*TRAINYARD, "broker", "--listen", "0.0.0.0"],
            env=stack.env | {"TRAINYARD_NATS_PORT": str(BROKER_PORT)},
            stdout=log, stderr=log,
        )  # fmt: skip
    until((home / "run" / "nats.json").exists, 60, "the broker is configured")
    return stack, broker


@pytest.mark.parametrize(
    "way",
    [Way.BOTH, *(pytest.param(w, marks=pytest.mark.nightly) for w in Way if w is not Way.BOTH)],
)
def test_a_host_behind_a_router_that_swallows_what_it_is_given(
    tmp_path: Path, tiny_model: Path, seed: int, wires: tuple[Wire, ...], way: Way
) -> None:
    home = tmp_path / "home"

    def line(label: str) -> Line:
        return Inside() if label == SHELTER else wires[int(label.removeprefix("box"))]

    with inside(wires[0].stack):
        stack, broker = operated(home, tiny_model)
        try:
            with Scene(stack, line, tiny_model, seed, HEAL, STEPS) as scene:
                scene.beside.add(broker.pid)
                scene.set_up([Case(KEEP, (Break(way),)), Case(MOVE, (Break(way),), shared=True)])
                scene.cut_all()
                report, seen = scene.finish(f"namespaces, {way}", seed)
        finally:
            broker.terminate()
            broker.wait(120)
    print(report)
    assert report.violations == [], str(report)
    assert {len(job.attempts) for job in seen.jobs} in (
        {1, 2},
        {1} if way is Way.TO_AGENT else {1, 2},
    )
