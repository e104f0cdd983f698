"""One embedded stack and one tiny model for all end-to-end tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import ROOT, Stack


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "services.gpu_agent.trainers.model_zoo",
            "tiny",
            "--out",
            str(folder),
        ],
        check=True,
        cwd=ROOT,
        timeout=480,
    )
    return folder


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(tmp_path_factory.mktemp("home"))
    try:
        running.start()
        yield running
    finally:
        running.stop()
