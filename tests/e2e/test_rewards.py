"""Rewards in the whole stack: judged by a provider, counted by the api, alerts for subscribers, the key nowhere."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from services.gpu_agent.shim import read_json
from tests.e2e.stack import ROOT, Stack, until
from tests.hostile.leaks import in_files
from tests.provider.process import MockProvider
from tests.provider.server import KEY

pytestmark = pytest.mark.e2e
CANARY = "sk-canary-5f0c1d2e3a4b5c6d7e8f9a0b1c2d3e4f"


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProvider]:
    with MockProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(
        tmp_path_factory.mktemp("rewards"),
        rewards=True,
        TRAINYARD_REWARD_ALLOW_HTTP_HOSTS="127.0.0.1",
    )
    made.start()
    yield made
    assert made.stop() == 0


def reward_url(stack: Stack) -> str:
    return str(json.loads((stack.home / "run" / "reward.json").read_text())["url"])


def command(stack: Stack, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "trainyard.cli.main", "reward", *words],
        env=stack.env | env, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def api(stack: Stack, path: str) -> Any:
    answer = httpx2.get(stack.client.url + path, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def judge(stack: Stack, provider: str, texts: list[str], **options: Any) -> dict[str, Any]:
    body = {
        "reward": {"type": "judge", "provider": provider},
        "items": [{"id": str(n), "completion": t} for n, t in enumerate(texts)],
        "options": options,
    }
    answer = httpx2.post(reward_url(stack) + "/v1/score", json=body, timeout=240)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_new_user_configures_tries_and_reads_what_it_cost(
    stack: Stack, mock: MockProvider, tmp_path: Path
) -> None:
    mock.behave(answer='{"score": 0, "reason": "no"}')
    words = ("providers", "set", "mock", "--api-base", mock.base, "--price", "*=0.8,2.0")
    done = command(stack, *words, TRAINYARD_PROVIDER_KEY=KEY)
    assert done.returncode == 0, done.stderr
    tried = command(stack, "providers", "test", "mock")
    assert tried.returncode == 0, tried.stdout + tried.stderr
    config = tmp_path / "judge.yaml"
    config.write_text("type: judge\nprovider: mock\n")
    shown = command(stack, "try", "--config", str(config), "--completion", "hello")
    assert "judged" in shown.stdout
    assert "mock/qwen-plus" in shown.stdout
    mock.behave()
    job = "0193c1f2-8000-7000-8000-000000000001"
    first = judge(stack, "mock", ["a", "b", "a"], job_uuid=job)
    judge(stack, "mock", ["a"], job_uuid=job)

    def counted() -> Any:
        items = api(stack, f"/api/v1/rewards/usage?job={job}&by=job")["items"]
        return items and items[0]["cache_hits"] == 1 and items[0]

    usage = until(counted, 20, "the api has counted the calls", stack)
    assert (usage["calls"], usage["deduplicated"], usage["errors"]) == (2, 1, {})
    assert usage["cost"] == pytest.approx(first["summary"]["cost"])
    assert usage["latency_ms"]["p50"] is not None
    own = httpx2.get(reward_url(stack) + f"/v1/usage?job_uuid={job}", timeout=60).json()["items"]
    assert own[0]["cost"] == pytest.approx(usage["cost"])
    listed = command(stack, "providers", "ls")
    assert f"…{KEY[-4:]}" in listed.stdout
    assert KEY not in listed.stdout + done.stdout + tried.stdout


def test_a_wrong_key_raises_an_alert_and_is_nowhere(stack: Stack, mock: MockProvider) -> None:
    mock.behave()
    words = ("providers", "set", "wrong", "--api-base", mock.base)
    assert command(stack, *words, TRAINYARD_PROVIDER_KEY=CANARY).returncode == 0
    lost = judge(stack, "wrong", ["x"])
    assert lost["results"][0]["error"]["code"] == "provider_auth"
    assert lost["results"][0]["reward"] is None
    assert CANARY not in json.dumps(lost)

    def alerted() -> Any:
        return [a for a in api(stack, "/api/v1/alerts")["items"] if a["provider"] == "wrong"]

    alert = until(alerted, 20, "the alert is told", stack)[0]
    assert (alert["rule"], alert["severity"]) == ("provider_failing", "critical")
    assert "provider_auth" in alert["message"]
    until(lambda: _published(stack, alert["id"]), 20, "subscribers have it too", stack)
    tried = command(stack, "providers", "test", "wrong")
    assert tried.returncode == 1
    assert CANARY not in tried.stdout + tried.stderr
    texts = [
        httpx2.get(reward_url(stack) + p, timeout=60).text
        for p in ("/v1/providers", "/v1/usage", "/metrics")
    ]
    texts += [json.dumps(api(stack, p)) for p in ("/api/v1/rewards/usage", "/api/v1/alerts")]
    assert not [t for t in texts if CANARY in t]
    assert leaks(stack) == []
    (stack.home / "logs" / "planted.log").write_text(f"key={CANARY}")
    assert leaks(stack) != [], "the search finds what is there"
    (stack.home / "logs" / "planted.log").unlink()


def leaks(stack: Stack) -> list[str]:
    """Return where the canary stands in clear: any file of the home, any process's command line or environment."""
    needle = CANARY.encode()
    found = list(in_files(stack.home, [CANARY]))
    assert stack.process is not None
    for process in psutil.Process(stack.process.pid).children(recursive=True):
        for name in ("cmdline", "environ"):
            try:
                text = Path(f"/proc/{process.pid}/{name}").read_bytes()
            except OSError:
                continue
            if needle in text:
                found.append(f"{process.pid}/{name}")
    return found


def _published(stack: Stack, alert: str) -> bool:
    database = sqlite3.connect(f"file:{stack.home / 'api' / 'main.db'}?mode=ro", uri=True)
    try:
        row = database.execute("SELECT published FROM alert WHERE id = ?", (alert,)).fetchone()
    finally:
        database.close()
    return bool(row and row[0])


def rules_service(stack: Stack) -> dict[str, Any]:
    """Return what the rules service of the host says of itself; {} while there is none."""
    told = stack.home / "agents" / "local" / "rules" / "run" / "reward.json"
    try:
        found: dict[str, Any] = json.loads(told.read_text())
    except FileNotFoundError:
        return {}
    return found


def test_every_host_scores_by_rules_without_a_network(stack: Stack) -> None:
    url = until(lambda: rules_service(stack), 30, "the rules service runs", stack)["url"]
    item = {"id": "0", "completion": r"\boxed{42}", "solution": "42"}
    body = {"reward": {"type": "math_verify"}, "items": [item]}
    answer = httpx2.post(url + "/v1/score", json=body, timeout=60)
    assert answer.json()["results"][0]["reward"] == 1.0


def test_the_rules_service_outlives_its_agent_and_is_adopted(stack: Stack) -> None:
    pid = until(lambda: rules_service(stack), 30, "the rules service runs", stack)["pid"]
    ready = stack.home / "agents" / "local" / "agent.json"
    stack.kill("services.gpu_agent")
    agent = stack.pid_of("services.gpu_agent")
    until(lambda: (read_json(str(ready)) or {}).get("pid") == agent, 30, "the agent is back", stack)
    assert rules_service(stack)["pid"] == pid
    os.kill(pid, 9)
    until(lambda: rules_service(stack).get("pid", pid) != pid, 60, "another one is started", stack)
