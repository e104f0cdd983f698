"""`python -m services.api` as a process: it starts, serves, and ends as it was told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import TEST_STORE_MIB, RunningBroker
from tests.integration.api.yard import ROWS

pytestmark = [pytest.mark.integration]
START_SECONDS = 120.0


def start(home: Path, **env: str) -> subprocess.Popen[bytes]:
    values = {
        "TRAINYARD_HOME": str(home),
        "TRAINYARD_API_PORT": "0",
        "TRAINYARD_CHECKPOINT_DIR": str(home / "checkpoints"),
        "TRAINYARD_NATS_STORE_MIB": str(TEST_STORE_MIB),
        "OMP_NUM_THREADS": "1",
    }
    with (home / "api.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "services.api"],
            env=os.environ | values | env,
            stderr=log,
        )


def url_of(process: subprocess.Popen[bytes], home: Path) -> str:
    """Wait until it serves."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, (home / "api.log").read_text()[-3000:]
        try:
            told: dict[str, Any] = json.loads((home / "run" / "api.json").read_text())
            if (
                told["pid"] == process.pid
                and httpx2.get(told["url"] + "/livez", timeout=30).status_code == 200
            ):
                return str(told["url"])
        except (OSError, ValueError, httpx2.TransportError):
            time.sleep(0.05)
    pytest.fail((home / "api.log").read_text()[-3000:])


def until_ready(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while (answer := httpx2.get(url + "/readyz", timeout=30)).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)


async def test_an_acknowledged_job_survives_kill_9(broker: RunningBroker, home: Path) -> None:
    data = home / "d.jsonl"
    data.write_text(ROWS)
    body = {"algorithm": "sft", "model_path": "org/m", "train_data_path": str(data)}
    process = start(home)
    try:
        url = url_of(process, home)
        until_ready(url)
        made = [
            httpx2.post(f"{url}/api/v1/jobs/", json=body, timeout=60).json()["uuid"]
            for _ in range(3)
        ]
        process.kill()
        process.wait(10)
        process = start(home)
        url = url_of(process, home)
        until_ready(url)
        listed = httpx2.get(f"{url}/api/v1/jobs/", timeout=60).json()["items"]
        assert {job["uuid"] for job in listed} == set(made)
        page = httpx2.get(f"{url}/docs", timeout=60)
        assert page.status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not (home / "run" / "api.json").exists()
    finally:
        process.kill()
        process.wait(10)


def test_it_says_why_it_does_not_start(home: Path) -> None:
    process = start(home, TRAINYARD_API_HOST="0.0.0.0")
    assert process.wait(START_SECONDS) == 78
    assert "TRAINYARD_API_TOKEN" in (home / "api.log").read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(home, TRAINYARD_API_PORT=str(taken.getsockname()[1]))
        assert process.wait(START_SECONDS) == 69
    assert "TRAINYARD_API_PORT" in (home / "api.log").read_text()
