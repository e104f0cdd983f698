"""Batch, memory and disk figures, and the path rule."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.preflight.batch import BatchPlan, arrange, total_steps
from shared.preflight.disk import RESERVE, check_free, estimate_checkpoints, in_words
from shared.preflight.finding import Finding
from shared.preflight.memory import RunShape, check_memory, estimate_memory, lora_parameters
from shared.preflight.model import ModelReport
from shared.preflight.paths import Refusal, looks_like_hub_id, resolve_allowed

SMALL = ModelReport(
    "m",
    "local",
    "full",
    parameters=100_000_000,
    hidden_size=512,
    layers=12,
    vocab_size=32_000,
    attention_heads=8,
    kv_heads=4,
    linear_widths=40_000,
)


def plan(*args: object, **more: object) -> BatchPlan:
    made = arrange(*args, **more)  # type: ignore[arg-type]
    assert isinstance(made, BatchPlan), made
    return made


def test_rows_per_device() -> None:
    made = plan("sft", 4, 8, world_size=2)
    assert (made.per_device, made.accumulation, made.effective) == (4, 8, 64)
    cut = plan("dpo", 12, 1, max_micro=5)
    assert (cut.per_device, cut.accumulation, cut.effective) == (4, 3, 12)


@pytest.mark.parametrize(
    ("prompts", "accumulation", "group", "most", "micro", "pieces"),
    [
        (2, 1, 5, None, 10, 1),
        (2, 5, 5, None, 2, 5),
        (2, 3, 5, None, 2, 5),
        (2, 1, 5, 4, 2, 5),
        (32, 1, 8, 256, 256, 1),
        (3, 1, 7, 1, 1, 21),
        (2, 99, 5, None, 1, 10),
    ],
)
def test_grouped_completions(
    prompts: int, accumulation: int, group: int, most: int | None, micro: int, pieces: int
) -> None:
    made = plan("grpo", prompts, accumulation, rollout_n=group, max_micro=most)
    assert (made.per_device, made.accumulation, made.effective, made.prompts_per_step) == (
        micro,
        pieces,
        prompts * group,
        prompts,
    )


@pytest.mark.parametrize(("group", "completions"), [(1, 4), (5, 20)])
def test_ppo_samples_as_often_as_asked(group: int, completions: int) -> None:
    made = plan("ppo", 4, rollout_n=group)
    assert (made.effective, made.prompts_per_step, made.per_device) == (completions, 4, completions)
    assert total_steps(made, "ppo", 41) == 10


def test_arranging_is_said() -> None:
    assert [note.code for note in plan("grpo", 2, 3, rollout_n=5).notes] == [
        "accumulation_arranged"
    ]
    assert plan("grpo", 2, 5, rollout_n=5).notes == ()


@settings(max_examples=150, deadline=None)
@given(
    algorithm=st.sampled_from(["grpo", "gspo", "ppo", "sft", "dpo"]), prompts=st.integers(1, 64), accumulation=st.integers(1, 16),
    group=st.integers(2, 16), world=st.integers(1, 8), most=st.none() | st.integers(1, 64),
)  # fmt: skip
def test_every_plan_is_legal(
    algorithm: str, prompts: int, accumulation: int, group: int, world: int, most: int | None
) -> None:
    made = arrange(
        algorithm, prompts, accumulation, rollout_n=group, world_size=world, max_micro=most
    )
    if isinstance(made, Finding):
        assert made.code == "batch_not_divisible"
        for valid in (made.allowed or "").split(" or "):
            assert isinstance(
                arrange(
                    algorithm,
                    int(valid),
                    accumulation,
                    rollout_n=group,
                    world_size=world,
                    max_micro=most,
                ),
                BatchPlan,
            )
        return
    assert made.per_device * made.accumulation * world == made.effective
    assert most is None or made.per_device <= most
    if algorithm in ("grpo", "gspo", "ppo"):
        assert made.effective == prompts * group
        assert made.effective % group == 0
        assert made.eval_batch % group == 0


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("sft", 0), "batch_invalid"),
        (("sft", 1, 0), "batch_invalid"),
        (("grpo", 2), "group_too_small"),
    ],
)
def test_impossible_batches(args: tuple[object, ...], code: str) -> None:
    made = arrange(*args)  # type: ignore[arg-type]
    assert isinstance(made, Finding)
    assert made.code == code


def test_steps() -> None:
    assert total_steps(plan("sft", 2), "sft", 200) == 100
    assert total_steps(plan("sft", 3, 2), "sft", 20, 2) == 8  # 7 batches, 4 updates an epoch
    assert total_steps(plan("sft", 2), "sft", 200, 0.5) == 50
    assert total_steps(plan("sft", 64), "sft", 10) == 1
    assert total_steps(plan("sft", 2), "sft", 200, 3, max_steps=7) == 7
    assert total_steps(plan("grpo", 3, rollout_n=5), "grpo", 20) == 6
    small = total_steps(plan("grpo", 30, rollout_n=5), "grpo", 20)
    assert isinstance(small, Finding)
    assert (small.code, small.allowed) == ("dataset_smaller_than_batch", "<= 20")


def test_full_weights_take_sixteen_bytes_a_parameter() -> None:
    made = estimate_memory(SMALL, RunShape("sft", 2, 512))
    assert made is not None
    assert made.weights + made.gradients + made.optimizer == 16 * 100_000_000
    assert made.reference == 0
    assert made.total > 16 * 100_000_000


def test_memory_grows_and_shrinks_where_it_should() -> None:
    plain = RunShape("sft", 8, 1024)

    def total(**more: Any) -> int:
        made = estimate_memory(SMALL, replace(plain, **more))
        assert made is not None
        return made.total

    assert total(batch=16) > total() > total(gradient_checkpointing=True)
    assert total(lora_rank=8) < total()
    assert total(algorithm="dpo") > total(algorithm="reward_model") > total(batch=4)
    assert total(algorithm="ppo") > total()
    assert total(algorithm="dpo", lora_rank=8) < total(algorithm="dpo")
    assert total(devices_sharing=4) < total()
    assert lora_parameters(SMALL, 8) == 320_000
    assert estimate_memory(ModelReport("org/name", "hub"), RunShape("sft", 1, 1)) is None


def test_memory_verdicts() -> None:
    made = estimate_memory(SMALL, RunShape("sft", 2, 512))
    assert made is not None
    assert check_memory(made, made.total * 2, device="GPU 0") is None
    tight = check_memory(made, int(made.total * 1.05), device="GPU 0")
    assert tight is not None
    assert (tight.code, tight.severity) == ("memory_tight", "warning")
    small = check_memory(made, made.total // 2, device="GPU 0")
    assert small is not None
    assert (small.code, small.severity) == ("memory_too_small", "error")
    assert "GPU 0" in small.message_en
    assert in_words(made.total) in small.message_zh


def test_disk(tmp_path: Path) -> None:
    full = estimate_checkpoints(1_000_000)
    assert full.checkpoint_bytes == 12_000_000 + (16 << 20)
    assert full.kept == 7
    assert full.total_bytes == int(full.checkpoint_bytes * 7 * RESERVE)
    assert estimate_checkpoints(1_000_000, trained=10_000).checkpoint_bytes == 120_000 + (16 << 20)
    assert estimate_checkpoints(1_000_000, total_saves=2).kept == 2
    assert estimate_checkpoints(1_000_000, optim="sgd").checkpoint_bytes < full.checkpoint_bytes
    assert check_free(tmp_path / "not" / "there" / "yet", 1) is None
    finding = check_free(tmp_path, 1 << 60)
    assert finding is not None
    assert finding.code == "disk_full"
    assert str(tmp_path) in finding.message_en
    assert in_words(1 << 60) in finding.message_en
    assert "free" in finding.message_en
    assert check_free("a\x00b", 1) is None or check_free("a\x00b", 1).code == "disk_unreadable"  # type: ignore[union-attr]


def test_bytes_in_words() -> None:
    assert [in_words(n) for n in (0, 312, 2048, 20 << 20, 3 << 30)] == [
        "0 bytes",
        "312 bytes",
        "2.0 KiB",
        "20.0 MiB",
        "3.0 GiB",
    ]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "a.jsonl").write_text("{}")
    (tmp_path / "data-other").mkdir()
    (tmp_path / "secret.jsonl").write_text("{}")
    (tmp_path / "data" / "escape.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (tmp_path / "data" / "inner.jsonl").symlink_to(tmp_path / "data" / "a.jsonl")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data" / "loop")
    (tmp_path / "way-in").symlink_to(tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("data/a.jsonl", "data/a.jsonl"), ("data/sub/../a.jsonl", "data/a.jsonl"), ("data/inner.jsonl", "data/a.jsonl"),
        ("way-in/a.jsonl", "data/a.jsonl"), ("data/new/file.jsonl", "data/new/file.jsonl"), ("data", "data"),
        ("data/../secret.jsonl", None), ("data/escape.jsonl", None), ("secret.jsonl", None), ("/etc/passwd", None),
        ("data-other/x.jsonl", None), ("../../../etc/passwd", None), ("data/sub/../../data-other", None), ("", None), ("data/a\x00", None), ("~/x", None),
    ],
)  # fmt: skip
def test_the_path_rule(tree: Path, path: str, real: str | None) -> None:
    made = resolve_allowed(path, [tree / "way-in"], base=tree)
    if real is None:
        assert isinstance(made, Refusal)
        assert (
            made.code == "path_invalid"
            if path in ("", "data/a\x00")
            else "TRAINYARD_DATA_ROOTS" in made.message_en
        )
    else:
        assert made == tree / real


def test_a_loop_of_links_is_refused_and_no_roots_mean_no_path(tree: Path) -> None:
    assert isinstance(resolve_allowed(tree / "data" / "loop", None), Refusal)
    assert isinstance(resolve_allowed(tree / "data", []), Refusal)


def test_on_loopback_every_path_is_resolved(tree: Path) -> None:
    assert resolve_allowed(tree / "data" / "escape.jsonl", None) == tree / "secret.jsonl"
    assert resolve_allowed("x.jsonl", None) == Path.cwd() / "x.jsonl"


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_no_path_raises_or_escapes(text: str) -> None:
    made = resolve_allowed(text, ["/tmp/roots"], base="/tmp/roots")
    assert isinstance(made, Refusal) or os.path.commonpath(
        [made, Path("/tmp/roots").resolve()]
    ) == str(Path("/tmp/roots").resolve())


@pytest.mark.parametrize(
    ("text", "hub"),
    [
        ("org/name", True),
        ("Qwen/Qwen3-0.6B", True),
        ("openai/gsm8k@main", True),
        ("datasets/a.jsonl", False),
        ("/a/b", False),
        ("./a/b", False),
        ("../a", False),
        ("a/b/c", False),
        ("name", False),
        ("a/../b", False),
        ("a--b/c", False),
        ("", False),
        ("org/na me", False),
    ],
)
def test_hub_ids(text: str, hub: bool) -> None:
    assert looks_like_hub_id(text) is hub
