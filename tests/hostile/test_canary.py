"""Every secret that a stack accepts, each with a value of its own, is found nowhere but encrypted; a planted leak is."""

from __future__ import annotations

import base64
import contextlib
import json
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
from tests.e2e.pacer import Pacer
from tests.e2e.stack import ROOT, Stack, until
from tests.e2e.test_spine import ENDLESS
from tests.hostile.leaks import ENVIRONMENT, in_bytes, in_files, in_processes

__all__ = ["tiny_model"]
pytestmark = [pytest.mark.e2e]
NAMES = (
    "api_token", "wrong_token", "HF_TOKEN", "WANDB_API_KEY", "replaced", "later", "refused",
    "ssh_password", "ssh_private_key", "reward_model_api_key", "component_key", "misplaced",
    "provider_key", "private_key",
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
                    frame = socket_.recv(timeout=240)
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
    running = Stack(
        home, rewards=True, TRAINYARD_API_TOKEN=secrets["api_token"], TRAINYARD_LOG_LEVEL="DEBUG"
    )
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


class Scene:
    """One stack, what is asked of it, and where secrets were found."""

    def __init__(self, stack: Stack, model: Path, secrets: dict[str, str]) -> None:
        assert stack.process is not None
        self.stack, self.secrets, self.token = stack, secrets, secrets["api_token"]
        self.up = stack.process.pid
        self.url = str(stack.client.url)
        self.seen = Seen()
        self.found: set[str] = set()
        headers = {"Authorization": f"Bearer {self.token}"}
        self.http = httpx2.Client(base_url=self.url, headers=headers, timeout=120)
        self.body: dict[str, Any] = {
            "algorithm": "sft",
            "model_path": str(model),
            "train_data_path": str(ROOT / "datasets" / "sales_sft.jsonl"),
            "batch_size": 2,
        }
        self.own = {name: secrets[name] for name in ("HF_TOKEN", "WANDB_API_KEY")}

    def submit(self, **changes: Any) -> str:
        reply = self.http.post("/api/v1/jobs/", json=self.body | changes)
        self.seen.note(reply)
        assert reply.status_code == 201, reply.text
        return str(reply.json()["uuid"])

    def look_at_processes(self, *more: int) -> None:
        for root in (self.up, *more):
            self.found |= set(in_processes(root, self.secrets.values()))

    def keep_secrets(self) -> list[str]:
        """Submit jobs that hold a secret of every kind and wait for what is not there."""
        secrets = self.secrets
        key = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{secrets['ssh_private_key']}\n-----END OPENSSH PRIVATE KEY-----\n"
        remote = {"run_mode": "ssh", "ssh_host": "127.0.0.1", "ssh_port": 1, "ssh_username": "u"}
        judged = self.submit(
            name="judged", algorithm="grpo", train_data_path=str(ROOT / "datasets" / "sales_grpo.jsonl"),
            host="nobody", reward_model_type="api", reward_model_api_base="https://judge.example/v1",
            reward_model_api_key=secrets["reward_model_api_key"],
        )  # fmt: skip
        others = [
            self.submit(name="remote", ssh_password=secrets["ssh_password"], **remote),
            self.submit(name="keyed", ssh_private_key=key, **remote),
        ]
        for name, value in (
            ("HF_TOKEN", secrets["replaced"]),
            ("HF_TOKEN", secrets["later"]),
            ("rewards.judge.reward_model_api_key", secrets["component_key"]),
        ):
            reply = self.http.put(f"/api/v1/jobs/{judged}/secrets/{name}", json={"value": value})
            self.seen.note(reply)
            assert reply.status_code == 204, reply.text
        self.keep_provider_keys(judged)
        for reply in refusals(self.http, self.body, secrets, judged):
            assert 400 <= reply.status_code < 500, reply.text
            self.seen.note(reply)
        return [judged, *others]

    def keep_provider_keys(self, job: str) -> None:
        """Give the reward service keys of judges, also where it refuses them."""
        url = json.loads((self.stack.home / "run" / "reward.json").read_text())["url"]
        own = {"api_base": "https://judge.example/v1"}
        judge = own | {"name": "judge"}
        kept, private = self.secrets["provider_key"], self.secrets["private_key"]
        for path, body, ok in (
            ("/v1/providers/judge", judge | {"api_key": kept}, True),
            (f"/v1/jobs/{job}/provider", own | {"api_key": private}, True),
            ("/v1/providers/judge", judge | {"api_key": [kept]}, False),
            ("/v1/providers/judge", judge | {"api_keys": kept}, False),
            (
                "/v1/providers/judge",
                judge | {"api_base": "http://127.0.0.1/", "api_key": kept},
                False,
            ),
        ):
            reply = self.http.put(f"{url}{path}", json=body)
            assert reply.is_success is ok, (path, reply.text)
            self.seen.note(reply)
        for path in ("/v1/providers", "/v1/providers/judge", "/v1/rewards", "/metrics", "/openapi.json"):  # fmt: skip
            self.seen.note(self.http.get(url + path))
        item = {"id": "1", "prompt": "p", "completion": "c"}
        asked = {
            "items": [item],
            "reward": {"type": "judge", "provider": "judge", "model": "m"},
            "options": {"timeout_s": 5},
        }
        self.seen.note(self.http.post(f"{url}/v1/score", json=asked))

    def fail(self) -> list[str]:
        """Let one trainer crash, and one ask for a gated model that cannot be reached."""
        client = self.stack.client
        crashed = self.submit(
            name="crashed", secrets=self.own, max_steps=ENDLESS, save_steps=1000, max_retries=0
        )
        until(lambda: client.jobs.get(crashed).progress, 90, "it trains", self.stack)
        self.look_at_processes(*_trainers(self.stack, crashed))
        os.kill(self.stack.trainer_pid(crashed, 1), signal.SIGSEGV)
        assert self.stack.ended(crashed, 60).status == "FAILED"
        gated = self.submit(
            name="gated", model_path="org/gated-model", secrets=self.own, max_retries=0
        )
        assert self.stack.ended(gated).status == "FAILED"
        return [crashed, gated]

    def read_everything(self, jobs: list[str]) -> None:
        for job in jobs:
            for part in ("", "/events", "/secrets", "/metrics", "/logs", "/logs/download", "/samples", "/system", "/checkpoints"):  # fmt: skip
                self.seen.note(self.http.get(f"/api/v1/jobs/{job}{part}"))
            self.seen.note(self.http.post(f"/api/v1/jobs/{job}/clone"))
        for path in ("/api/v1/jobs/", "/api/v1/hosts/", "/metrics", "/openapi.json", "/readyz", "/docs", "/"):  # fmt: skip
            self.seen.note(self.http.get(path))

    def search(self) -> set[str]:
        """Return every place where a secret was found."""
        self.look_at_processes()
        wanted = self.secrets.values()
        self.found |= {f"file {place}" for place in in_files(self.stack.home, wanted)}
        for part in self.seen.parts:
            self.found |= {f"answer: {secret}" for secret in in_bytes(part, wanted)}
        return self.found


def test_no_secret_is_found_anywhere(
    stack: Stack, tiny_model: Path, secrets: dict[str, str], tmp_path: Path
) -> None:
    scene = Scene(stack, tiny_model, secrets)
    with Pacer([stack.jobs_dir]):
        trained = scene.submit(name="trained", secrets=scene.own, max_steps=60, save_steps=30)
        watching = scene.seen.watch(scene.url, trained, scene.token)
        until(lambda: stack.client.jobs.get(trained).status == "RUNNING", 60, "it runs", stack)
        scene.look_at_processes()
        waiting = scene.keep_secrets()
    assert stack.ended(trained).status == "COMPLETED"
    failed = scene.fail()
    stack.kill("services.api")
    until(stack.client.is_ready, 60, "the api is back", stack)
    scene.read_everything([trained, *failed, *waiting])
    archive = scene.http.get(f"/api/v1/jobs/{trained}/checkpoints/60/download")
    assert archive.status_code == 200
    scene.seen.note(archive)
    watching.join(240)
    found = scene.search()
    scene.http.close()
    # The operator gave the token to `up`, and `up` to the two services that ask for it, and to the agent, whose trainers ask
    # for rewards with it; nothing that an agent starts inherits it.
    allowed = {
        place
        for place in found
        if place.startswith(ENVIRONMENT)
        and place.endswith(scene.token)
        and any(
            name in place
            for name in (
                "cli.main up",
                "services.api",
                "services.reward",
                "-m services.gpu_agent :",
            )
        )
    }
    assert found - allowed == set()
    assert allowed, "the search does not see the token where it is"
    assert len(scene.seen.parts) > 80
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
        [sys.executable, "-I", "-c", "import time; time.sleep(600)", shown], env={"KEY": kept}
    )
    try:
        until(lambda: len(set(in_processes(sleeper.pid, [shown, kept]))) == 2, 10, "both are found")
    finally:
        sleeper.kill()
        sleeper.wait(10)
