"""One real reward service in rules-only mode for a module."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx2
import pytest

ROOT = Path(__file__).resolve().parents[3]
START_SECONDS = 240.0


class Service:
    """A process of the reward service; `stop` ends it and returns its exit status."""

    def __init__(self, home: Path, **env: str) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "reward.log"
        run_file = home / "run" / "reward.json"
        run_file.unlink(missing_ok=True)
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "services.reward"],
                cwd=ROOT,
                stdout=stream,
                stderr=stream,
                env=os.environ | {"TRAINYARD_HOME": str(home), "TRAINYARD_REWARD_PORT": "0"} | env,
            )
        deadline = time.monotonic() + START_SECONDS
        while not run_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(self.log.read_text())
            time.sleep(0.05)
        self.url: str = json.loads(run_file.read_text())["url"]
        self.client = httpx2.Client(base_url=self.url, timeout=300)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("reward"), TRAINYARD_REWARD_RULES_ONLY="true")
    yield service
    assert service.stop() == 0
