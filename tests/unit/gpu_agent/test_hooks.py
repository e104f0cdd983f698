from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from services.gpu_agent import checkpoint_store
from services.gpu_agent.hooks import checks, dataset, directory, environment, model, resume, space
from services.gpu_agent.hooks.context import HookContext
from services.gpu_agent.layout import HostFiles
from services.gpu_agent.shim import take_locks
from shared.events.calls import ControlEntry
from shared.jobs.reasons import Reason

Make = Callable[..., HookContext]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def context(roots: tuple[Path, ...] | None = None, **fields: object) -> HookContext:
        config = {"algorithm": "sft", **fields.pop("config", {})}
        entry = ControlEntry.model_validate(
            {"epoch": "e", "job": "job1", "attempt": 1, "desired": "run", "config": config} | fields
        )
        host = HostFiles(tmp_path / "agent", tmp_path / "agent" / "jobs", tmp_path / "ckpt")
        made = HookContext(entry, host, roots, tmp_path, "cpu", 8000)
        made.attempt_files.root.mkdir(parents=True, exist_ok=True)
        return made

    return context


def rows(path: Path, *values: dict) -> Path:
    path.write_text("".join(json.dumps(v) + "\n" for v in values))
    return path


GOOD = {"prompt": "1+1", "response": "2"}


def test_folders_are_made(make: Make) -> None:
    context = make()
    assert directory.check(context) is None
    assert context.checkpoint_dir.is_dir()
    assert context.job_files.log.parent.is_dir()


def test_folder_that_cannot_be_written_is_the_hosts_fault(make: Make) -> None:
    context = make()
    context.job_files.log.parent.write_text("a file where a folder should be")
    refusal = directory.check(context)
    assert refusal is not None
    assert (refusal.fault, refusal.reason) == ("host", Reason.HOST_REFUSED)


def test_dataset_is_resolved_hashed_and_noted(make: Make, tmp_path: Path) -> None:
    rows(tmp_path / "train.jsonl", GOOD, GOOD)
    context = make(config={"train_data_path": "train.jsonl"})
    assert dataset.check(context) is None
    assert context.train_data_path == str(tmp_path / "train.jsonl")
    assert list(context.datasets) == [context.train_data_path]
    assert any("2 rows" in text for _, text in context.notes)


def test_dataset_that_changed_between_attempts_is_told(make: Make, tmp_path: Path) -> None:
    rows(tmp_path / "train.jsonl", GOOD)
    assert dataset.check(make(config={"train_data_path": "train.jsonl"})) is None
    rows(tmp_path / "train.jsonl", GOOD, GOOD, GOOD)
    second = make(config={"train_data_path": "train.jsonl"})
    assert dataset.check(second) is None
    assert any(level == "WARNING" and "changed" in text for level, text in second.notes)


@pytest.mark.parametrize(
    ("path", "roots", "reason"),
    [
        ("missing.jsonl", None, Reason.DATASET_MISSING),
        ("bad.jsonl", None, Reason.DATASET_INVALID),
        ("/etc/passwd", ("data",), Reason.PATH_FORBIDDEN),
        ("data/../../outside.jsonl", ("data",), Reason.PATH_FORBIDDEN),
        ("data/link.jsonl", ("data",), Reason.PATH_FORBIDDEN),
    ],
)
def test_wrong_dataset_fails_the_job(
    make: Make, tmp_path: Path, path: str, roots: tuple[str, ...] | None, reason: Reason
) -> None:
    rows(tmp_path / "bad.jsonl", GOOD, {"prompt": "no answer"})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.jsonl").symlink_to("/etc/passwd")
    allowed = None if roots is None else tuple(tmp_path / r for r in roots)
    refusal = dataset.check(make(allowed, config={"train_data_path": path}))
    assert refusal is not None
    assert (refusal.fault, refusal.reason) == ("job", reason)
    assert refusal.message_en != refusal.message_zh
    if reason is Reason.DATASET_INVALID:
        assert "2" in refusal.message_en  # the line


def test_hub_dataset_is_left_to_the_trainer(make: Make) -> None:
    context = make(config={"train_data_path": "openai/gsm8k"})
    assert dataset.check(context) is None
    assert context.train_data_path == "openai/gsm8k"


def small_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps(
            {"model_type": "qwen2", "hidden_size": 4, "num_hidden_layers": 1, "vocab_size": 8}
        )
    )
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    (folder / "tokenizer_config.json").write_text("{}")
    header = json.dumps(
        {"model.embed_tokens.weight": {"dtype": "F32", "shape": [8, 4], "data_offsets": [0, 128]}}
    ).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(128)
    (folder / "model.safetensors").write_bytes(data)
    return folder


def test_model_folder_is_read(make: Make, tmp_path: Path) -> None:
    small_model(tmp_path / "model")
    context = make(config={"model_path": "model"})
    assert model.check(context) is None
    assert context.model_path == str(tmp_path / "model")
    assert context.model is not None
    assert context.model.parameters == 32
    assert space.check(context) is None


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("./nowhere/at/all", Reason.MODEL_MISSING),
        ("empty", Reason.MODEL_MISSING),
        ("truncated", Reason.MODEL_INVALID),
    ],
)
def test_wrong_model_fails_the_job(make: Make, tmp_path: Path, path: str, reason: Reason) -> None:
    (tmp_path / "empty").mkdir()
    weights = small_model(tmp_path / "truncated") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refusal = model.check(make(config={"model_path": path}))
    assert refusal is not None
    assert (refusal.fault, refusal.reason) == ("job", reason)


def test_hub_model_is_left_to_the_trainer(make: Make) -> None:
    context = make(config={"model_path": "Qwen/Qwen2.5-0.5B"})
    assert model.check(context) is None
    assert context.model_path == "Qwen/Qwen2.5-0.5B"


def saved(folder: Path, step: int) -> Path:
    part = checkpoint_store.begin(folder, step)
    (part / "model.safetensors").write_bytes(b"weights of %d" % step)
    return checkpoint_store.publish(part, step, "full", 1.0, {}, {}).path


def test_damaged_checkpoint_as_model_is_refused(make: Make, tmp_path: Path) -> None:
    folder = saved(tmp_path / "other", 5)
    (folder / "model.safetensors").write_bytes(b"weights of 6")
    refusal = model.check(make(model_path=str(folder)))
    assert refusal is not None
    assert refusal.reason is Reason.CHECKPOINT_CORRUPT


def test_resume_takes_the_newest_that_is_whole(make: Make) -> None:
    context = make(resume=True)
    first = saved(context.checkpoint_dir, 10)
    newest = saved(context.checkpoint_dir, 20)
    (newest / "model.safetensors").write_bytes(b"weights of 21")
    unfinished = checkpoint_store.begin(context.checkpoint_dir, 30)
    assert resume.check(context) is None
    assert context.resume_from == first
    assert not unfinished.exists()
    assert any("checkpoint-20" in text for level, text in context.notes if level == "WARNING")


def test_first_attempt_does_not_resume(make: Make) -> None:
    context = make()
    saved(context.checkpoint_dir, 10)
    assert resume.check(context) is None
    assert context.resume_from is None


def test_gpu_that_is_held_is_the_hosts_refusal(make: Make) -> None:
    context = make(gpu_uuids=("slot-0",))
    assert environment.check(context) is None
    lock = context.host.gpu_lock("slot-0")
    take_locks([str(lock)], "job9 1\n")
    refusal = environment.check(context)
    assert refusal is not None
    assert (refusal.fault, refusal.reason) == ("host", Reason.HOST_REFUSED)
    assert "job9" in refusal.message_en


def test_a_host_without_verl_is_passed_over_with_what_to_install(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make(config={"algorithm": "grpo", "engine": "verl"})
    refusal = environment.check(context)
    assert refusal is not None
    assert "needs a GPU" in refusal.message_en
    context.device = "cuda"
    refusal = environment.check(context)
    assert refusal is not None
    assert (refusal.fault, refusal.reason) == ("host", Reason.HOST_REFUSED)
    assert "pip install 'verl[vllm]==0.7.0'" in refusal.message_en
    assert "verl" in refusal.message_zh
    elsewhere = tmp_path / "python"  # verl has an environment of its own
    elsewhere.write_text("#!/bin/sh\nexit 0\n")
    elsewhere.chmod(0o755)
    monkeypatch.setenv("TRAINYARD_AGENT_VERL_PYTHON", str(elsewhere))
    assert environment.check(context) is None
    monkeypatch.setenv("TRAINYARD_AGENT_VERL_PYTHON", str(tmp_path / "nothing"))
    refusal = environment.check(context)
    assert refusal is not None
    assert "nothing" in refusal.message_en


def test_full_disk_is_the_hosts_refusal(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_model(tmp_path / "model")
    context = make(config={"model_path": "model", "save_total_limit": 10**12})
    assert model.check(context) is None
    refusal = space.check(context)
    assert refusal is not None
    assert (refusal.fault, refusal.reason) == ("host", Reason.DISK_FULL)


def test_check_that_breaks_is_a_refusal_with_words(make: Make) -> None:
    def broken(_: HookContext) -> None:
        raise ValueError("boom")

    refusal = checks.run_checks(make(), [broken])
    assert refusal is not None
    assert refusal.fault == "host"
    assert "boom" in refusal.message_en


@pytest.mark.parametrize(
    ("config", "halvings", "sequences"),
    [
        ({"algorithm": "sft", "batch_size": 4}, 0, 4),
        ({"algorithm": "sft", "batch_size": 4}, 1, 2),
        ({"algorithm": "grpo", "batch_size": 2, "rollout_n": 6}, 0, 12),
        ({"algorithm": "grpo", "batch_size": 2, "rollout_n": 6, "gradient_accumulation_steps": 3}, 1, 2),
    ],
)  # fmt: skip
def test_memory_is_estimated_for_what_one_pass_holds(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict, halvings: int, sequences: int
) -> None:  # fmt: skip
    batches = []
    monkeypatch.setattr(
        environment, "estimate_memory", lambda _, shape: batches.append(shape.batch)
    )
    context = make(config=config, oom_halvings=halvings)
    context.model = model.check_model(small_model(tmp_path / "model"))
    assert environment._memory(context) is None
    assert batches == [sequences]


def test_every_other_model_is_resolved_by_its_place(make: Make, tmp_path: Path) -> None:
    for name in ("model", "ref", "judge"):
        small_model(tmp_path / name)
    rewards = [{"name": "a"}, {"name": "b", "reward_model_path": "judge"}]
    config = {"model_path": "model", "ref_model_path": "ref", "rewards": rewards}
    context = make(config=config | {"reward_model_path": "org/rm"})
    assert model.check(context) is None
    assert context.model_paths == {
        "ref_model_path": str(tmp_path / "ref"),
        "reward_model_path": "org/rm",
        "rewards.1.reward_model_path": str(tmp_path / "judge"),
    }
    refusal = model.check(make(config=config | {"ref_model_path": "./nowhere"}))
    assert refusal is not None
    assert refusal.reason is Reason.MODEL_MISSING


def test_other_models_obey_the_roots_but_for_a_jobs_checkpoint(make: Make, tmp_path: Path) -> None:
    small_model(tmp_path / "data" / "model")
    elsewhere = str(small_model(tmp_path / "elsewhere" / "ref"))
    roots = (tmp_path / "data",)
    config = {"model_path": "data/model", "ref_model_path": elsewhere}
    refusal = model.check(make(roots, config=config))
    assert refusal is not None
    assert refusal.reason is Reason.PATH_FORBIDDEN
    resolved = {"ref_model_path": elsewhere}
    assert model.check(make(roots, config=config, resolved=resolved)) is None


def test_a_damaged_checkpoint_as_reference_is_refused_by_its_name(
    make: Make, tmp_path: Path
) -> None:
    small_model(tmp_path / "model")
    folder = saved(tmp_path / "other", 5)
    (folder / "model.safetensors").write_bytes(b"weights of 6")
    refusal = model.check(make(config={"model_path": "model", "ref_model_path": str(folder)}))
    assert refusal is not None
    assert refusal.reason is Reason.CHECKPOINT_CORRUPT
    assert "ref_model_path" in refusal.message_en
