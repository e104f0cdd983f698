"""One real job from REST to a checkpoint, and what may happen on the way: kills of every part."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.pacer import Pacer
from tests.e2e.stack import Stack, until
from tests.hostile.leaks import in_files
from trainyard import ApiError, Job

pytestmark = pytest.mark.e2e
ENDLESS = 100_000
"""Steps of a job that a test ends: no machine is done with it before."""
STEPS = 200
"""Steps of a job that is paced while something happens to it, and then comes to its end."""


def body(model: Path, **changes: Any) -> dict[str, Any]:
    """The guide's own body, with a seed and small steps."""
    return {
        "name": "sales assistant",
        "algorithm": "sft",
        "model_path": str(model),
        "train_data_path": "datasets/sales_sft.jsonl",
        "num_gpus": 1,
        "learning_rate": 1e-3,
        "batch_size": 2,
        "num_epochs": 1,
    } | changes


def short_steps(model: Path, **changes: Any) -> dict[str, Any]:
    """Short rows, so that a step takes milliseconds."""
    return body(model, context_length=64, num_epochs=10, **changes)


def run_to_end(stack: Stack, request: dict[str, Any], seconds: float = 120) -> Job:
    job = stack.client.jobs.submit(request)
    return stack.ended(job.uuid, seconds)


def losses(stack: Stack, job: str) -> dict[int, float]:
    data = stack.client.jobs.metrics(job, ["loss"], points=10_000)
    series = zip(data.x, data.series["loss"], strict=True)
    return {int(x): v for x, v in series if x is not None and v is not None}


def steps_reached(stack: Stack, job: str) -> int:
    found = stack.client.jobs.get(job)
    return found.progress.step if found.progress else 0


def test_the_guides_body_trains_to_a_checkpoint_that_loads_in_plain_python(
    stack: Stack, tiny_model: Path
) -> None:
    job = run_to_end(stack, body(tiny_model, max_steps=12, save_steps=5))
    assert (job.status, job.reason) == ("COMPLETED", None), job.message
    assert job.attempt == 1
    assert job.final_metrics is not None
    assert job.final_metrics["loss"] > 0
    assert job.latest_metrics is not None
    assert {"loss", "learning_rate", "grad_norm", "epoch"} <= set(job.latest_metrics)
    assert sorted(losses(stack, job.uuid)) == list(range(1, 13))
    kept = {c.step: c for c in stack.client.jobs.checkpoints(job.uuid)}
    assert {0, 5, 10, 12} <= set(kept)
    assert kept[12].last
    assert Path(kept[12].path).parent == Path(str(job.checkpoint_dir))
    script = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T;"
        "m = M.from_pretrained(sys.argv[1]); t = T.from_pretrained(sys.argv[1]); print(m.num_parameters())"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script, kept[12].path],
        capture_output=True,
        text=True,
        timeout=480,
        check=True,
    )
    assert int(loaded.stdout.split()[-1]) > 100_000


def test_an_agent_killed_in_mid_training_finds_its_trainer_again(
    stack: Stack, tiny_model: Path
) -> None:
    with Pacer([stack.jobs_dir]):
        job = stack.client.jobs.submit(short_steps(tiny_model, max_steps=STEPS, save_steps=50))
        until(lambda: steps_reached(stack, job.uuid) >= 5, 60, "training runs", stack)
        trainer = stack.trainer_pid(job.uuid, 1)
        stack.kill("services.gpu_agent")
        assert psutil.Process(trainer).is_running()
        made = stack.steps_made(job.uuid, 1)
        until(lambda: steps_reached(stack, job.uuid) > made, 90, "metrics flow again", stack)
    assert stack.trainer_pid(job.uuid, 1) == trainer
    ended = stack.ended(job.uuid)
    assert (ended.status, ended.attempt) == ("COMPLETED", 1), ended.message
    data = stack.client.jobs.metrics(job.uuid, ["loss"], points=10_000)
    assert data.x == list(range(1, STEPS + 1)), "a step is missing or doubled"


def test_a_killed_trainer_goes_on_from_its_newest_checkpoint_with_the_same_losses(
    stack: Stack, tiny_model: Path
) -> None:
    request = short_steps(tiny_model, max_steps=100, save_steps=10, max_retries=1)
    calm = run_to_end(stack, request)
    assert calm.status == "COMPLETED", calm.message
    with Pacer([stack.jobs_dir]):
        job = stack.client.jobs.submit(request)
        until(
            lambda: any(c.step >= 20 for c in stack.client.jobs.checkpoints(job.uuid)),
            60,
            "checkpoint 20 is there",
            stack,
        )
        os.kill(stack.trainer_pid(job.uuid, 1), signal.SIGKILL)
    ended = stack.ended(job.uuid)
    assert (ended.status, ended.attempt) == ("COMPLETED", 2), ended.message
    undisturbed, resumed = losses(stack, calm.uuid), losses(stack, job.uuid)
    assert undisturbed.keys() == resumed.keys()
    worst = max(abs(undisturbed[s] - resumed[s]) for s in undisturbed)
    assert worst == 0.0


def test_killed_broker_and_api_are_never_noticed_by_the_job(stack: Stack, tiny_model: Path) -> None:
    with Pacer([stack.jobs_dir]):
        job = stack.client.jobs.submit(short_steps(tiny_model, max_steps=STEPS, save_steps=50))
        until(lambda: steps_reached(stack, job.uuid) >= 5, 60, "training runs", stack)
        trainer = stack.trainer_pid(job.uuid, 1)
        stack.kill("nats-server")
        stack.kill("services.api")
        until(stack.client.is_ready, 30, "the api is ready again", stack)
        stack.kill("services.scheduler")
        assert psutil.Process(trainer).is_running()
    ended = stack.ended(job.uuid)
    assert (ended.status, ended.attempt) == ("COMPLETED", 1), ended.message
    assert stack.trainer_pid(job.uuid, 1) == trainer
    assert sorted(losses(stack, job.uuid)) == list(range(1, STEPS + 1))


def test_cancel_frees_the_host_and_leaves_no_process(stack: Stack, tiny_model: Path) -> None:
    job = stack.client.jobs.submit(
        body(tiny_model, max_steps=ENDLESS, num_epochs=1000, save_steps=ENDLESS)
    )
    until(lambda: steps_reached(stack, job.uuid) >= 2, 60, "training runs", stack)
    trainer = stack.trainer_pid(job.uuid, 1)
    stack.client.jobs.cancel(job.uuid)
    ended = stack.ended(job.uuid, 60)
    assert ended.status == "CANCELLED"
    assert not psutil.pid_exists(trainer)
    with pytest.raises(ApiError) as refusal:
        stack.client.jobs.cancel(job.uuid)
    assert refusal.value.status == 409


def test_pause_and_resume_lose_no_step(stack: Stack, tiny_model: Path) -> None:
    with Pacer([stack.jobs_dir]):
        job = stack.client.jobs.submit(short_steps(tiny_model, max_steps=STEPS, save_steps=500))
        until(lambda: steps_reached(stack, job.uuid) >= 5, 60, "training runs", stack)
        stack.client.jobs.pause(job.uuid)
        until(lambda: stack.client.jobs.get(job.uuid).status == "PAUSED", 60, "it is paused", stack)
    stack.client.jobs.resume(job.uuid)
    ended = stack.ended(job.uuid)
    assert (ended.status, ended.attempt) == ("COMPLETED", 2), ended.message
    assert sorted(losses(stack, job.uuid)) == list(range(1, STEPS + 1))


def test_a_job_takes_the_checkpoint_of_the_job_it_waits_for(stack: Stack, tiny_model: Path) -> None:
    first = stack.client.jobs.submit(body(tiny_model, max_steps=6))
    second = stack.client.jobs.submit(
        body(
            tiny_model,
            name="second",
            max_steps=3,
            model_path=f"job:{first.uuid}",
            lora_enabled=True,
        )
    )
    assert stack.client.jobs.get(second.uuid).depends_on == [first.uuid]
    ended = stack.ended(second.uuid)
    assert ended.status == "COMPLETED", ended.message
    kept = stack.client.jobs.checkpoints(second.uuid)
    assert {c.kind for c in kept} == {"lora"}
    spec = json.loads((stack.attempt_dir(second.uuid, 1) / "spec.json").read_text())
    assert spec["model_path"].endswith("checkpoint-6")


def test_a_job_behind_a_failed_one_is_cancelled_with_the_reason(
    stack: Stack, tiny_model: Path
) -> None:
    first = stack.client.jobs.submit(body(tiny_model, max_steps=ENDLESS, num_epochs=1000))
    second = stack.client.jobs.submit(body(tiny_model, max_steps=3, depends_on=[first.uuid]))
    until(lambda: stack.client.jobs.get(second.uuid).waiting_for, 20, "it says why it waits", stack)
    stack.client.jobs.cancel(first.uuid)
    ended = stack.ended(second.uuid)
    assert (ended.status, ended.reason) == ("CANCELLED", "dependency_failed")


def test_the_live_view_resumes_without_loss(stack: Stack, tiny_model: Path) -> None:
    job = stack.client.jobs.submit(body(tiny_model, max_steps=30))
    frames = list(stack.client.jobs.live(job.uuid, since=0))
    numbers = [f.seq for f in frames]
    assert numbers == sorted(set(numbers))
    assert [f.data["status"] for f in frames if f.type == "status"][-1] == "COMPLETED"
    steps = [f.data["step"] for f in frames if f.type == "metric" and "loss" in f.data["metrics"]]
    assert steps == list(range(1, 31))
    middle = numbers[len(numbers) // 2]
    again = [f.seq for f in stack.client.jobs.live(job.uuid, since=middle)]
    assert again == [n for n in numbers if n > middle]


def test_out_of_reach_inputs_end_in_a_sentence(stack: Stack, tiny_model: Path) -> None:
    dpo = "datasets/sales_dpo.jsonl"
    cases: list[tuple[dict[str, Any], str]] = [
        (body(tiny_model, train_data_path="datasets/nothing.jsonl"), "train_data_path"),
        (body(tiny_model, train_data_path=dpo), "train_data_path"),
        (body(tiny_model, learning_rte=1e-3), "learning_rte"),
        (body(tiny_model, model_path="/nothing/here"), "model_path"),
    ]
    for request, field in cases:
        with pytest.raises(ApiError) as refusal:
            stack.client.jobs.submit(request)
        assert refusal.value.status == 422
        assert field in [e["field"] for e in refusal.value.errors], refusal.value.problem
    text = json.dumps(body(tiny_model)).replace("0.001", "NaN")
    reply = stack.client._http.post(
        "/api/v1/jobs/", content=text, headers={"Content-Type": "application/json"}
    )
    assert reply.status_code in (400, 422)
    assert reply.headers["content-type"].startswith("application/problem+json")
    assert "NaN" in reply.json()["detail"]


def test_the_same_idempotency_key_gives_the_same_job(stack: Stack, tiny_model: Path) -> None:
    key = str(uuid.uuid4())
    request = body(tiny_model, max_steps=1)
    first = stack.client.jobs.submit(request, idempotency_key=key)
    assert stack.client.jobs.submit(request, idempotency_key=key).uuid == first.uuid
    with pytest.raises(ApiError) as refusal:
        stack.client.jobs.submit(request | {"name": "other"}, idempotency_key=key)
    assert refusal.value.status == 409


def test_a_secret_reaches_the_trainer_and_nothing_else(stack: Stack, tiny_model: Path) -> None:
    canary = f"CANARY-{uuid.uuid4()}"
    job = run_to_end(stack, body(tiny_model, max_steps=2, secrets={"HF_TOKEN": canary}))
    assert job.status == "COMPLETED", job.message
    assert canary not in job.model_dump_json()
    assert list(in_files(stack.home, [canary])) == []


def test_deleting_leaves_no_files_and_no_history(stack: Stack, tiny_model: Path) -> None:
    job = run_to_end(stack, body(tiny_model, max_steps=2))
    folder = Path(str(job.checkpoint_dir))
    assert folder.exists()
    stack.client.jobs.delete(job.uuid)
    with pytest.raises(ApiError) as refusal:
        stack.client.jobs.get(job.uuid)
    assert refusal.value.status == 404
    until(lambda: not folder.exists(), 30, "its files are collected", stack)


def test_the_stack_leaves_and_the_next_one_adopts_what_runs(
    tmp_path: Path, tiny_model: Path
) -> None:
    first = Stack(tmp_path)
    client = first.start()
    second = Stack(tmp_path)
    try:
        with Pacer([first.jobs_dir]):
            job = client.jobs.submit(short_steps(tiny_model, max_steps=STEPS, save_steps=50))
            until(lambda: steps_reached(first, job.uuid) >= 5, 60, "training runs", first)
            trainer = first.trainer_pid(job.uuid, 1)
            assert first.stop() == 0
            assert psutil.Process(trainer).is_running()
            client = second.start()
            assert psutil.Process(trainer).is_running()
        ended = second.ended(job.uuid)
        assert (ended.status, ended.attempt) == ("COMPLETED", 1), ended.message
        assert second.trainer_pid(job.uuid, 1) == trainer
        assert sorted(losses(second, job.uuid)) == list(range(1, STEPS + 1))
    finally:
        for one in (first, second):
            if one.process is not None:
                one.stop()
