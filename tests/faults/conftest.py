"""The model of the fault proofs, and where their seeds come from."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.stack import ROOT


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    module = "services.gpu_agent.trainers.model_zoo"
    subprocess.run(
        [sys.executable, "-P", "-m", module, "tiny", "--out", str(folder)],
        check=True, cwd=ROOT, timeout=480,
    )  # fmt: skip
    return folder


@pytest.fixture
def seed() -> int:
    """FAULT_SEED, or another one each time; a report prints it."""
    given = os.environ.get("FAULT_SEED")
    return int(given) if given else random.SystemRandom().randrange(1_000_000)
