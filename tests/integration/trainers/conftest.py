"""A tiny model made once, small datasets, and one way to run an attempt in this process."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.reward.conftest import Service

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

PAIRS = [(a, b) for a in range(10, 40) for b in (3, 7)]


def rows(count: int, offset: int = 0) -> list[dict[str, str]]:
    return [
        {"prompt": f"{a}+{b}=", "response": f"\\boxed{{{a + b}}}"}
        for a, b in PAIRS[offset : offset + count]
    ]


def write_jsonl(path: Path, items: list[Any]) -> Path:
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from services.gpu_agent.trainers.model_zoo.__main__ import make

    out = tmp_path_factory.mktemp("models") / "tiny"
    make("tiny", out)
    return out


@pytest.fixture(scope="session")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The reward service of this host, as the agent starts it."""
    service = Service(tmp_path_factory.mktemp("rules"), TRAINYARD_REWARD_RULES_ONLY="true")
    yield service
    assert service.stop() == 0


@pytest.fixture(scope="session")
def rules_file(rules: Service) -> str:
    return str(rules.home / "run" / "reward.json")


@dataclass
class Ended:
    """What an attempt left behind."""

    code: int
    result: dict[str, Any]
    events: list[dict[str, Any]]
    checkpoint_dir: Path
    attempt_dir: Path

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["type"] == kind]

    def series(self, name: str) -> dict[int, Any]:
        return {e["step"]: e["metrics"][name] for e in self.of("metric") if name in e["metrics"]}

    def steps_on_disk(self) -> list[int]:
        return sorted(int(p.name.split("-")[1]) for p in self.checkpoint_dir.glob("checkpoint-*"))


class Runner:
    """Runs attempts of jobs below one folder, in this process."""

    def __init__(self, root: Path, tiny: Path) -> None:
        self.root = root
        self.tiny = tiny
        self.train = write_jsonl(root / "train.jsonl", rows(24))
        self.held_out = write_jsonl(root / "eval.jsonl", rows(6, 40))

    def prepare(self, job: str, config: dict[str, Any], attempt: int = 1, **fields: Any) -> Path:
        work = self.root / job
        attempt_dir = work / "attempts" / str(attempt)
        attempt_dir.mkdir(parents=True)
        base = {
            "gradient_checkpointing": False,
            "learning_rate": 1e-3,
            "save_steps": 5,
            "eval_steps": 5,
        }
        spec = {
            "job": job,
            "attempt": attempt,
            "algorithm": "sft",
            "config": base | config,
            "model_path": str(self.tiny),
            "train_data_path": str(self.train),
            "checkpoint_dir": str(work / "checkpoints"),
            "work_dir": str(work),
            "attempt_dir": str(attempt_dir),
        } | fields
        (attempt_dir / "spec.json").write_text(json.dumps(spec))
        return attempt_dir

    def __call__(
        self,
        job: str,
        config: dict[str, Any],
        attempt: int = 1,
        secrets: dict[str, str] | None = None,
        **fields: Any,
    ) -> Ended:
        from services.gpu_agent.trainers.entry import run_attempt

        attempt_dir = self.prepare(job, config, attempt, **fields)
        code = run_attempt(attempt_dir, {"OTHER": "topsecretvalue"} | (secrets or {}))
        return self.read(job, attempt, code)

    def read(self, job: str, attempt: int, code: int) -> Ended:
        attempt_dir = self.root / job / "attempts" / str(attempt)
        events = attempt_dir / "events.jsonl"
        return Ended(
            code,
            json.loads((attempt_dir / "result.json").read_text()),
            [json.loads(line) for line in events.read_text().splitlines()]
            if events.exists()
            else [],
            self.root / job / "checkpoints",
            attempt_dir,
        )


@pytest.fixture
def runner(tmp_path: Path, tiny: Path) -> Runner:
    return Runner(tmp_path, tiny)


@pytest.fixture
def ppo(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> Any:
    from tests.integration.trainers.ppo_runs import PpoRunner

    return PpoRunner(runner, monkeypatch)
