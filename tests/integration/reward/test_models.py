"""Local reward models in their process, and remote ones over HTTP: real transformers, real servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from shared.rewards.scores import ScoreResponse
from tests.integration.reward.conftest import ROOT, Service

pytestmark = pytest.mark.integration
MAKE = """
import sys, torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
torch.manual_seed(0)
base, out = sys.argv[1:]
config = AutoConfig.from_pretrained(base)
config.num_labels = 1
model = AutoModelForSequenceClassification.from_config(config)
model.config.pad_token_id = AutoTokenizer.from_pretrained(base).eos_token_id
model.save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
"""
SCORE = """
import sys, json, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, text = sys.argv[1:]
t = AutoTokenizer.from_pretrained(folder); m = AutoModelForSequenceClassification.from_pretrained(folder).eval()
turns = [{"role": "user", "content": "task"}, {"role": "assistant", "content": text}]
ids = t(t.apply_chat_template(turns, tokenize=False), add_special_tokens=False, return_tensors="pt")["input_ids"] if t.chat_template else t("task" + text + t.eos_token, return_tensors="pt")["input_ids"]
with torch.inference_mode(): print(json.dumps(float(m(input_ids=ids).logits[0, -1])))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    zoo = [sys.executable, "-P", "-m", "services.gpu_agent.trainers.model_zoo", "tiny"]
    subprocess.run([*zoo, "--out", str(folder / "tiny")], check=True, cwd=ROOT, timeout=480)
    made = [sys.executable, "-c", MAKE, str(folder / "tiny"), str(folder / "rm")]
    subprocess.run(made, check=True, cwd=ROOT, timeout=480)
    return folder / "rm"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("reward-models")
    with Service(home, TRAINYARD_REWARD_ALLOW_HTTP_HOSTS="127.0.0.1") as running:
        yield running


def ask(service: Service, texts: list[str], **spec: Any) -> ScoreResponse:
    body = {
        "reward": {"type": "reward_model"} | spec,
        "items": [{"id": str(n), "prompt": "task", "completion": t} for n, t in enumerate(texts)],
        "options": {"timeout_s": 120.0},
    }
    answer = service.client.post("/v1/score", content=json.dumps(body), timeout=180)
    assert answer.status_code == 200, answer.text
    return ScoreResponse.model_validate_json(answer.content)


def test_scores_are_the_models_own_in_any_batch(service: Service, model: Path) -> None:
    texts = ["good", "a much longer answer " * 20, "bad", *[f"answer {n}" for n in range(80)]]
    found = ask(service, texts, model_path=str(model))
    assert found.summary.ok == len(texts)
    for n in (0, 1, 2):
        bare = subprocess.run(
            [sys.executable, "-c", SCORE, str(model), texts[n]], capture_output=True, text=True, check=True, timeout=480,
        )  # fmt: skip
        assert found.results[n].reward == pytest.approx(json.loads(bare.stdout), abs=1e-4)
    squashed = ask(service, texts[:3], model_path=str(model), transform="sigmoid")
    assert all(0 < (r.reward or 0) < 1 for r in squashed.results)
    long = ask(service, ["word " * 5000, "short"], model_path=str(model), max_length=64)
    assert [r.status for r in long.results] == ["error", "ok"], "a completion is never cut"


def test_a_killed_model_is_started_again(service: Service, model: Path) -> None:
    first = ask(service, ["x"], model_path=str(model)).results[0].reward
    for child in psutil.Process(service.process.pid).children(recursive=True):
        if "model_process" in " ".join(child.cmdline()):
            os.kill(child.pid, signal.SIGKILL)
            child.wait(10)
    found = ask(service, ["x"], model_path=str(model)).results[0]
    assert found.reward == first


def test_a_model_leaves_the_gpus_of_jobs_alone(
    service: Service, model: Path, tmp_path: Path
) -> None:
    def started(running: Service) -> list[str]:
        children = psutil.Process(running.process.pid).children(recursive=True)
        lines = [child.cmdline() for child in children]
        return next(line for line in lines if "services.reward.model_process" in line)

    assert ask(service, ["x"], model_path=str(model)).results[0].reward is not None
    assert started(service)[-1] == "cpu"
    with Service(tmp_path / "home", TRAINYARD_REWARD_MODEL_DEVICE="cuda:7") as told:
        found = ask(told, ["x"], model_path=str(model)).results[0]
        assert found.reward is None
        assert found.error is not None
        assert "TRAINYARD_REWARD_MODEL_DEVICE (cuda:7)" in found.error.message


def test_what_is_no_model_is_told(service: Service, tmp_path: Path) -> None:
    found = ask(service, ["x"], model_path=str(tmp_path))
    assert found.results[0].reward is None
    assert found.results[0].error is not None
    assert found.results[0].error.code == "reward_model_unavailable"
    assert "config.json" in found.results[0].error.message


def test_self_play_by_a_reward_model(service: Service, model: Path) -> None:
    rm = {"type": "reward_model", "model_path": str(model)}
    reward = {"type": "self_play", "mode": "pairwise", "by": "reward_model", "reward_model": rm}
    items = [{"id": str(n), "completion": f"answer {n}", "group_id": "g"} for n in range(4)]
    answer = service.client.post("/v1/score", json={"reward": reward, "items": items}, timeout=480)
    rates = [r["reward"] for r in answer.json()["results"]]
    assert sum(rates) / 4 == pytest.approx(0.5)
    assert max(rates) == 1.0


def test_beside_a_trainer_local_models_score_and_endpoints_do_not(
    model: Path, tmp_path: Path
) -> None:
    allowed = {"TRAINYARD_REWARD_RULES_ONLY": "true", "TRAINYARD_DATA_ROOTS": str(model.parent)}
    with Service(tmp_path / "home", **allowed) as beside:
        assert ask(beside, ["good"], model_path=str(model)).results[0].reward is not None
        refused = ask(beside, ["good"], model_path=str(tmp_path)).results[0]
        assert refused.error is not None
        assert "TRAINYARD_DATA_ROOTS" in refused.error.message
        remote = ask(beside, ["x"], backend="http", provider="rm", model_path="m").results[0]
        assert remote.error is not None
        assert "central" in remote.error.message


class Remote(BaseHTTPRequestHandler):
    """Speaks like vLLM, SGLang and OpenRLHF; the score is the length of the text."""

    asked: list[dict[str, Any]]
    failures: int

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append({"path": self.path} | body)
        if type(self).failures:
            type(self).failures -= 1
            self.send_error(503)
            return
        texts = body.get("input") or body["query"]
        data: list[dict[str, Any]] = []
        for text in texts:
            value = float(len(text))
            data.append({"probs": [value], "data": [[value]], "embedding": [0.0, value]})
        answer = {"data": data, "rewards": [float(len(t)) for t in texts]}
        sent = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def remote(service: Service) -> Iterator[type[Remote]]:
    handler = type("Handler", (Remote,), {"asked": [], "failures": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}"
    service.client.put("/v1/providers/rm", json={"name": "rm", "api_base": base})
    yield handler
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.mark.parametrize("route", ["classify", "pooling", "embeddings", "get_reward"])
def test_remote_models(service: Service, remote: type[Remote], route: str) -> None:
    found = ask(service, ["a", "abc"], backend="http", provider="rm", route=route, model_path="m")
    assert [r.reward for r in found.results][1] == (found.results[0].reward or 0) + 2
    if route in ("classify", "pooling"):
        assert remote.asked[0]["use_activation"] is False, "a squashed logit would be a constant"


def test_a_busy_remote_model_is_asked_again(service: Service, remote: type[Remote]) -> None:
    remote.failures = 2
    found = ask(service, ["a"], backend="http", provider="rm", route="classify")
    assert found.results[0].status == "ok"
    remote.failures = 99
    lost = ask(service, ["a"], backend="http", provider="rm", route="classify")
    assert lost.results[0].reward is None
    assert lost.results[0].error is not None
    assert lost.results[0].error.code == "provider_unavailable"
