"""Every secret that a stack accepts, each with a value of its own, is found nowhere but encrypted; a planted leak is."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.e2e.conftest import tiny_model
from tests.e2e.stack import ROOT, Stack, until
from tests.hostile.leaks import ENVIRONMENT, in_bytes, in_files, in_processes

__all__ = ["tiny_model"]
pytestmark = [pytest.mark.e2e]
NAMES = (
    "api_token", "wrong_token", "HF_TOKEN", "WANDB_API_KEY", "replaced", "later", "refused",
    "ssh_password", "ssh_private_key", "reward_model_api_key", "component_key", "misplaced",
)  # fmt: skip


def canaries() -> dict[str, str]:
    return {name: f"CANARY-{name}-{uuid.uuid4().hex}" for name in NAMES}


class Seen:
    """What the api said, over REST and the live feed."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def note(self, reply: httpx2.Response) -> None:
        self.parts.append(repr(reply.headers).encode() + reply.content)

    def watch(self, url: str, job: str, token: str) -> threading.Thread:
        def hear() -> None:
            address = f"{url.replace('http', 'ws')}/api/v1/monitoring/{job}/live"
            headers = {"Authorization": f"Bearer {token}"}
            with (
                contextlib.suppress(WebSocketException, TimeoutError, OSError),
                connect(address, additional_headers=headers, proxy=None) as socket_,
            ):
                while True:
                    frame = socket_.recv(timeout=60)
                    self.parts.append(frame.encode() if isinstance(frame, str) else frame)

        thread = threading.Thread(target=hear, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def secrets() -> dict[str, str]:
    return canaries()


@pytest.fixture
def stack(tmp_path: Path, secrets: dict[str, str]) -> Iterator[Stack]:
    home = tmp_path / "home"
    home.mkdir()
    running = Stack(home, TRAINYARD_API_TOKEN=secrets["api_token"], TRAINYARD_LOG_LEVEL="DEBUG")
    # The client of this test reads it too.
    os.environ["TRAINYARD_API_TOKEN"] = secrets["api_token"]
    try:
        running.start()
        yield running
    finally:
        del os.environ["TRAINYARD_API_TOKEN"]
        running.stop()


def refusals(http: httpx2.Client, body: dict[str, Any], secret: dict[str, str], job: str) -> Iterator[httpx2.Response]:  # fmt: skip
    """Send secrets where they are refused: wrong places, wrong types, wrong names, wrong tokens."""
    path = f"/api/v1/jobs/{job}/secrets"
    value, lost = secret["refused"], secret["misplaced"]
    for wrong in (
        body | {"hf_token": lost},
        body | {"HF_TOKEN": lost},
        body | {"reward_model_api_key": lost},
        body | {"ssh_password": lost},
        body | {"secrets": {"hf_token": value}},
        body | {"secrets": {"HF_TOKEN": [value]}},
        body | {"secrets": {"LD_PRELOAD": value}},
        body | {"secrets": value},
        body | {"secrets": {"HF_TOKEN": value}, "learning_rate": -1},
        body | {"run_mode": "ssh", "ssh_host": "x;y", "ssh_username": "u", "ssh_password": value},
        body | {"run_mode": "ssh", "ssh_host": "h", "ssh_username": "u", "ssh_private_key": value + "\x00"},
    ):  # fmt: skip
        yield http.post("/api/v1/jobs/", json=wrong)
    for name, sent in (
        ("HF_TOKEN", {"value": [value]}),
        ("HF_TOKEN", {"value": value, "more": value}),
        ("HF_TOKEN", {"token": value}),
        ("HF_TOKEN", value),
        ("lower", {"value": value}),
        ("PYTHONPATH", {"value": value}),
    ):
        yield http.put(f"{path}/{name}", json=sent)
    yield http.put(f"{path}/HF_TOKEN", content=f'{{"value": "{value}"'.encode(), headers={"Content-Type": "application/json"})  # fmt: skip
    yield http.put(f"{path}/HF_TOKEN", content=value.encode(), headers={"Content-Type": "text/plain"})  # fmt: skip
    yield http.get("/api/v1/jobs/", headers={"Authorization": f"Bearer {secret['wrong_token']}"})
    yield http.post("/api/v1/hosts/join", json={"code": value, "public_key": value})


def test_no_secret_is_found_anywhere(
    stack: Stack, tiny_model: Path, secrets: dict[str, str], tmp_path: Path
) -> None:
    client, seen = stack.client, Seen()
    url, token = str(client.url), secrets["api_token"]
    http = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30)
    body = {
        "algorithm": "sft",
        "model_path": str(tiny_model),
        "train_data_path": str(ROOT / "datasets" / "sales_sft.jsonl"),
        "batch_size": 2,
    }
    own = {"HF_TOKEN": secrets["HF_TOKEN"], "WANDB_API_KEY": secrets["WANDB_API_KEY"]}

    def submit(**changes: Any) -> str:
        reply = http.post("/api/v1/jobs/", json=body | changes)
        seen.note(reply)
        assert reply.status_code == 201, reply.text
        return str(reply.json()["uuid"])

    trained = submit(name="trained", secrets=own, max_steps=8, save_steps=4, time_limit_minutes=5)
    watching = seen.watch(url, trained, token)
    found: set[str] = set()
    until(lambda: client.jobs.get(trained).status == "RUNNING", 60, "it runs", stack)
    assert stack.process is not None
    up = stack.process.pid
    found |= set(in_processes(up, secrets.values()))
    crashed = submit(name="crashed", secrets=own, max_steps=5000, save_steps=50, max_retries=0)
    # A gated model: the token is used against a hub that is not there.
    gated = submit(name="gated", model_path="org/gated-model", secrets=own, max_retries=0)
    judged = submit(
        name="judged", algorithm="grpo", train_data_path=str(ROOT / "datasets" / "sales_grpo.jsonl"),
        num_gpus=64, reward_model_type="api", reward_model_api_base="https://judge.example/v1",
        reward_model_api_key=secrets["reward_model_api_key"],
    )  # fmt: skip
    remote = submit(
        name="remote", run_mode="ssh", ssh_host="127.0.0.1", ssh_port=1, ssh_username="u",
        ssh_password=secrets["ssh_password"],
    )  # fmt: skip
    keyed = submit(
        name="keyed", run_mode="ssh", ssh_host="127.0.0.1", ssh_port=1, ssh_username="u",
        ssh_private_key=f"-----BEGIN OPENSSH PRIVATE KEY-----\n{secrets['ssh_private_key']}\n-----END OPENSSH PRIVATE KEY-----\n",
    )  # fmt: skip
    for name, value in (
        ("HF_TOKEN", secrets["replaced"]),
        ("HF_TOKEN", secrets["later"]),
        ("rewards.judge.reward_model_api_key", secrets["component_key"]),
    ):
        reply = http.put(f"/api/v1/jobs/{judged}/secrets/{name}", json={"value": value})
        seen.note(reply)
        assert reply.status_code == 204, reply.text
    for reply in refusals(http, body, secrets, judged):
        assert 400 <= reply.status_code < 500, reply.text
        seen.note(reply)
    assert client.jobs.wait(trained, 120).status == "COMPLETED"
    until(lambda: (client.jobs.get(crashed).progress or None) is not None, 90, "it trains", stack)
    found |= set(in_processes(up, secrets.values()))
    for process in _trainers(stack, crashed):
        found |= set(in_processes(process, secrets.values()))
    os.kill(stack.trainer_pid(crashed, 1), signal.SIGSEGV)
    assert client.jobs.wait(crashed, 60).status == "FAILED"
    assert client.jobs.wait(gated, 120).status == "FAILED"
    stack.kill("services.api")
    until(lambda: http.get("/readyz").status_code == 200, 60, "the api is back")
    for uuid_ in (trained, crashed, gated, judged, remote, keyed):
        for part in ("", "/events", "/secrets", "/metrics", "/logs", "/logs/download", "/samples", "/system", "/checkpoints"):  # fmt: skip
            seen.note(http.get(f"/api/v1/jobs/{uuid_}{part}"))
        seen.note(http.post(f"/api/v1/jobs/{uuid_}/clone"))
    seen.note(http.get(f"/api/v1/jobs/{trained}/checkpoints/8/download"))
    for path in ("/api/v1/jobs/", "/api/v1/hosts/", "/metrics", "/openapi.json", "/readyz", "/docs"):  # fmt: skip
        seen.note(http.get(path))
    watching.join(60)
    found |= set(in_processes(up, secrets.values()))
    stored = stack.home / "api" / "main.db"
    assert stored.exists()
    found |= {f"file {place}" for place in in_files(stack.home, secrets.values())}
    found |= {f"answer: {s}" for part in seen.parts for s in in_bytes(part, secrets.values())}
    allowed = {
        place
        for place in found
        if place.startswith(ENVIRONMENT)
        and place.endswith(token)
        and ("trainyard.cli.main up" in place or "services.api" in place)
    }
    assert found - allowed == set()
    assert allowed, "the search does not see the token of the process it was given to"
    _finds_planted_leaks(stack, secrets, tmp_path)


def _trainers(stack: Stack, job: str) -> list[int]:
    """The trainer and its shim, which are no children of the stack."""
    pid = stack.trainer_pid(job, 1)
    with contextlib.suppress(psutil.NoSuchProcess):
        return [pid, psutil.Process(pid).ppid()]
    return [pid]


def _finds_planted_leaks(stack: Stack, secrets: dict[str, str], folder: Path) -> None:
    """Log one, hide one in base64, store one in a table, show one in a process list: each is found."""
    planted = folder / "planted"
    planted.mkdir()
    (planted / "api.log").write_text(f'{{"event": "x", "token": "{secrets["HF_TOKEN"]}"}}\n')
    coded = base64.b64encode(b"user:" + secrets["ssh_password"].encode())
    (planted / "hidden.log").write_bytes(b"Authorization: Basic " + coded)
    places = {place.partition(":")[0] for place in in_files(planted, secrets.values())}
    assert places == {"api.log", "hidden.log"}
    job = stack.client.jobs.list().items[0].uuid
    stack.client.jobs.update(job, name=secrets["later"])
    assert any(
        secrets["later"] in place for place in in_files(stack.home / "api", secrets.values())
    )
    shown, kept = secrets["WANDB_API_KEY"], secrets["component_key"]
    sleeper = subprocess.Popen(
        [sys.executable, "-I", "-c", "import time; time.sleep(60)", shown], env={"KEY": kept}
    )
    try:
        until(lambda: len(set(in_processes(sleeper.pid, [shown, kept]))) == 2, 10, "both are found")
    finally:
        sleeper.kill()
        sleeper.wait(10)
