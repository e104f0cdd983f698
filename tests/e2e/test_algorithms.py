"""Every algorithm through the whole stack: a chain of jobs from SFT on, rewards from the host's own service, samples by REST."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from shared.specs.metrics import METRICS
from tests.e2e.stack import Stack
from trainyard.models import Job

pytestmark = pytest.mark.e2e

SHARED = {"num_gpus": 1, "gradient_checkpointing": False, "context_length": 96, "max_steps": 2}
ROLLOUT = {
    "train_data_path": "datasets/arithmetic_grpo.jsonl",
    "batch_size": 2,
    "rollout_n": 4,
    "max_completion_length": 8,
}
PAIRS = {"train_data_path": "datasets/sales_dpo.jsonl", "batch_size": 2}
CHAIN: dict[str, dict[str, Any]] = {
    "dpo": PAIRS,
    "reward_model": PAIRS,
    "ppo": ROLLOUT | {"reward_model_type": "model"},
    "grpo": ROLLOUT
    | {
        "rewards": [
            {"name": "right", "reward_fn_type": "math_verify", "required": True},
            {"name": "form", "reward_fn_type": "format_check", "reward_fn_config": {"preset": "boxed"}},
        ]
    },
    "gspo": ROLLOUT,
}  # fmt: skip


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("algorithms"), rewards=True)
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture(scope="module")
def ended(stack: Stack, tiny_model: Path) -> dict[str, Job]:
    """Submit all at once: each waits for the job whose checkpoint it takes."""
    client = stack.client
    sft = {"algorithm": "sft", "train_data_path": "datasets/arithmetic_sft.jsonl", "batch_size": 4}
    made = {"sft": client.jobs.submit(SHARED | sft | {"model_path": str(tiny_model)})}
    for algorithm, config in CHAIN.items():
        body = SHARED | config | {"algorithm": algorithm, "model_path": f"job:{made['sft'].uuid}"}
        if algorithm == "ppo":
            body["reward_model_path"] = f"job:{made['reward_model'].uuid}"
        made[algorithm] = client.jobs.submit(body)
    return {name: stack.ended(job.uuid, 60) for name, job in made.items()}


@pytest.mark.parametrize("algorithm", ["sft", *CHAIN])
def test_it_completes_with_its_metrics_and_checkpoints(
    stack: Stack, ended: dict[str, Job], algorithm: str
) -> None:
    job = ended[algorithm]
    assert job.status == "COMPLETED", (job.reason, job.message)
    told = stack.client.jobs.metrics(job.uuid)
    wanted = {n for n in METRICS[algorithm] if n not in ("epoch", "eval_loss")}
    assert wanted <= set(told.series), wanted - set(told.series)
    assert [c.step for c in stack.client.jobs.checkpoints(job.uuid)] == [0, 2]


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "gspo"])
def test_completions_can_be_read_with_what_they_were_worth(
    stack: Stack, ended: dict[str, Job], algorithm: str
) -> None:
    base = f"{stack.client.url}/api/v1/jobs/{ended[algorithm].uuid}/samples"
    items, after = [], None
    while True:
        asked = {"sort": "-reward", "limit": 5} | ({} if after is None else {"after": after})
        page = httpx2.get(base, params=asked, timeout=60).json()
        items += page["items"]
        after = page["next"]
        if after is None:
            break
    assert len(items) == 2 * 2 * 4  # steps x prompts x completions
    rewards = [item["reward"] for item in items]
    assert all(r is not None for r in rewards)
    assert rewards == sorted(rewards, reverse=True)
    assert {item["step"] for item in items} == {1, 2}
    assert all(item["advantage"] is not None and item["prompt"].endswith("=") for item in items)
    if algorithm == "grpo":
        assert {"right", "form"} <= set(items[0]["components"])
