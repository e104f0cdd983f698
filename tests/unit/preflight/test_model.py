"""The check of a model folder from its files alone: damaged, unsafe, incomplete or mismatched ones are named."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from shared.preflight.finding import Finding
from shared.preflight.model import ModelReport, check_model
from shared.preflight.safetensors_header import Header, read_header

HIDDEN, LAYERS, VOCAB, INNER = 8, 2, 30, 16
CONFIG = {
    "model_type": "qwen2",
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCAB,
    "intermediate_size": INNER,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def tensors() -> dict[str, Any]:
    made: dict[str, Any] = {
        "model.embed_tokens.weight": np.zeros((VOCAB, HIDDEN), np.float32),
        "model.norm.weight": np.zeros((HIDDEN,), np.float32),
    }
    for layer in range(LAYERS):
        made[f"model.layers.{layer}.self_attn.q_proj.weight"] = np.zeros(
            (HIDDEN, HIDDEN), np.float32
        )
        made[f"model.layers.{layer}.mlp.up_proj.weight"] = np.zeros((INNER, HIDDEN), np.float32)
    return made


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    write_json(folder / "config.json", CONFIG)
    write_json(
        folder / "tokenizer.json",
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 29}]},
    )
    write_json(folder / "tokenizer_config.json", {"chat_template": "{{ messages }}"})
    save_file(tensors(), folder / "model.safetensors")
    return folder


def codes(report: ModelReport) -> list[str]:
    return [finding.code for finding in report.errors]


def test_a_good_model(model: Path) -> None:
    report = check_model(model, conversational=True)
    assert report.ok, report.errors
    assert report.kind == "full"
    assert report.parameters == VOCAB * HIDDEN + HIDDEN + LAYERS * (
        HIDDEN * HIDDEN + INNER * HIDDEN
    )
    assert report.weights_bytes == report.parameters * 4
    assert (report.dtype, report.hidden_size, report.layers, report.vocab_size) == (
        "F32",
        HIDDEN,
        LAYERS,
        VOCAB,
    )
    assert report.linear_widths == LAYERS * (2 * HIDDEN + INNER + HIDDEN)
    assert report.has_chat_template


def test_links_of_a_cache_are_followed(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for entry in model.iterdir():
        (snapshot / entry.name).symlink_to(entry)
    assert check_model(snapshot).ok


def shard(model: Path, *, leave_out: str = "", extra: dict[str, str] | None = None) -> None:
    (model / "model.safetensors").unlink()
    names = sorted(tensors())
    halves = {
        "model-00001-of-00002.safetensors": names[:3],
        "model-00002-of-00002.safetensors": names[3:],
    }
    for file, held in halves.items():
        if file != leave_out:
            save_file({name: tensors()[name] for name in held}, model / file)
    mapping = {name: file for file, held in halves.items() for name in held} | (extra or {})
    write_json(model / "model.safetensors.index.json", {"weight_map": mapping})


def test_shards(model: Path) -> None:
    shard(model)
    assert check_model(model).ok
    assert check_model(model).parameters == sum(t.size for t in tensors().values())


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"leave_out": "model-00002-of-00002.safetensors"}, "shard_missing"),
        ({"extra": {"lost.weight": "model-00001-of-00002.safetensors"}}, "checkpoint_corrupt"),
        ({"extra": {"x": "../other.safetensors"}}, "checkpoint_corrupt"),
        ({"extra": {"x": "weights.bin"}}, "checkpoint_corrupt"),
    ],
)
def test_bad_shards(model: Path, more: dict[str, Any], code: str) -> None:
    shard(model, **more)
    assert codes(check_model(model)) == [code]


def raw(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
CORRUPT: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("five bytes", b"12345"),
    ("header too large", struct.pack("<Q", 1 << 40) + b"{}"),
    ("header cut", struct.pack("<Q", 100) + b'{"a":'),
    ("not JSON", struct.pack("<Q", 4) + b"abcd"),
    ("not UTF-8", struct.pack("<Q", 2) + b"\xff\xff"),
    ("array", raw([1])),
    ("no tensors", raw({})),
    ("entry number", raw({"a": 1})),
    ("unknown dtype", raw({"a": ONE | {"dtype": "F99"}}, b"x" * 8)),
    ("shape text", raw({"a": ONE | {"shape": "2"}}, b"x" * 8)),
    ("shape negative", raw({"a": ONE | {"shape": [-2]}}, b"x" * 8)),
    ("shape huge", raw({"a": ONE | {"shape": [1 << 59, 1 << 59]}}, b"x" * 8)),
    ("offsets one", raw({"a": ONE | {"data_offsets": [8]}}, b"x" * 8)),
    ("offsets backwards", raw({"a": ONE | {"data_offsets": [8, 0]}}, b"x" * 8)),
    ("size mismatch", raw({"a": ONE | {"shape": [3]}}, b"x" * 8)),
    ("cut data", raw({"a": ONE}, b"x" * 7)),
    ("data too long", raw({"a": ONE}, b"x" * 9)),
    ("overlap", raw({"a": ONE, "b": ONE}, b"x" * 8)),
    ("hole", raw({"a": ONE, "b": ONE | {"data_offsets": [12, 20]}}, b"x" * 20)),
    ("deep", struct.pack("<Q", 4000) + b"[" * 4000),
]


@pytest.mark.parametrize("data", [case[1] for case in CORRUPT], ids=[case[0] for case in CORRUPT])
def test_corrupt_weights(model: Path, data: bytes) -> None:
    (model / "model.safetensors").write_bytes(data)
    report = check_model(model)
    assert codes(report) == ["checkpoint_corrupt"]
    assert "model.safetensors" in report.errors[0].message_en
    assert report.parameters is None


def test_pickled_weights_are_refused_but_training_state_is_not_weights(model: Path) -> None:
    (model / "training_args.bin").write_bytes(b"\x80\x04.")
    (model / "optimizer.pt").write_bytes(b"\x80\x04.")
    assert check_model(model).ok
    (model / "model.safetensors").unlink()
    assert codes(check_model(model)) == ["weights_missing"]
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert codes(check_model(model)) == ["unsafe_format"]


def test_gguf_is_named(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model.gguf")
    assert codes(check_model(model)) == ["unsupported_format"]


def test_configuration_and_tokenizer(model: Path) -> None:
    write_json(model / "config.json", CONFIG | {"auto_map": {"AutoModel": "x.py"}})
    assert codes(check_model(model)) == ["remote_code_required"]
    write_json(model / "config.json", {"hidden_size": True})
    assert codes(check_model(model)) == ["not_a_model"]
    (model / "config.json").write_bytes(b"\xff{")
    assert codes(check_model(model)) == ["not_a_model"]
    (model / "config.json").write_bytes(b"[" * 100_000)
    assert codes(check_model(model)) == ["not_a_model"]
    (model / "config.json").unlink()
    assert codes(check_model(model)) == ["not_a_model"]
    write_json(model / "config.json", CONFIG)
    write_json(model / "tokenizer.json", {"model": {"vocab": {"a": VOCAB}}})
    assert codes(check_model(model)) == ["vocab_mismatch"]
    (model / "tokenizer.json").unlink()
    assert codes(check_model(model)) == ["tokenizer_missing"]


def test_a_conversational_dataset_needs_a_chat_template(model: Path) -> None:
    write_json(model / "tokenizer_config.json", {})
    assert check_model(model).ok
    assert codes(check_model(model, conversational=True)) == ["chat_template_missing"]
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert check_model(model, conversational=True).ok


@pytest.mark.parametrize(
    "name",
    ["", " ", "/no/such/folder", "a\x00b", "x" * 5000, "../../nothing-here", "name-without-org"],
)
def test_absent_models(name: str) -> None:
    report = check_model(name)
    assert len(report.errors) == 1
    assert report.errors[0].code in ("model_not_found", "model_not_readable")


def test_hub_ids_and_files(model: Path) -> None:
    report = check_model("Qwen/Qwen3-0.6B")
    assert (report.source, report.ok, report.warnings[0].code) == (
        "hub",
        True,
        "model_will_be_fetched",
    )
    assert codes(check_model(model / "config.json")) == ["not_a_model"]
    assert codes(check_model("/etc")) == ["not_a_model"]


def adapter(folder: Path, base: str, wide: int = HIDDEN, module: str = "self_attn.q_proj") -> Path:
    folder.mkdir()
    write_json(
        folder / "adapter_config.json",
        {"base_model_name_or_path": base, "r": 2, "peft_type": "LORA"},
    )
    prefix = f"base_model.model.model.layers.0.{module}"
    save_file(
        {
            f"{prefix}.lora_A.weight": np.zeros((2, wide), np.float32),
            f"{prefix}.lora_B.weight": np.zeros((HIDDEN, 2), np.float32),
        },
        folder / "adapter_model.safetensors",
    )
    return folder


def test_adapters(model: Path, tmp_path: Path) -> None:
    report = check_model(adapter(tmp_path / "lora", str(model)), conversational=True)
    assert report.ok, report.errors
    assert (report.kind, report.base_model, report.adapter_parameters) == (
        "adapter",
        str(model),
        2 * HIDDEN * 2,
    )
    assert report.parameters == check_model(model).parameters
    assert codes(check_model(adapter(tmp_path / "wide", str(model), wide=99))) == [
        "adapter_mismatch"
    ]
    assert codes(check_model(adapter(tmp_path / "named", str(model), module="attn.c_proj"))) == [
        "adapter_mismatch"
    ]
    assert codes(check_model(adapter(tmp_path / "lost", str(tmp_path / "gone")))) == [
        "model_not_found"
    ]
    assert check_model(adapter(tmp_path / "hub", "Qwen/Qwen3-0.6B")).ok
    looped = adapter(tmp_path / "loop", str(tmp_path / "loop"))
    assert codes(check_model(looped)) == ["adapter_base_missing"]
    (tmp_path / "lora" / "adapter_model.safetensors").rename(
        tmp_path / "lora" / "adapter_model.bin"
    )
    assert codes(check_model(tmp_path / "lora")) == ["unsafe_format"]


def test_a_pipe_in_place_of_weights_does_not_hang(model: Path) -> None:
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    assert codes(check_model(model)) == ["weights_missing"]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.binary(max_size=40).map(lambda b: struct.pack("<Q", len(b)) + b),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]),
                    inner,
                    max_size=3,
                )
            ),
            max_leaves=10,
        ).map(raw),
    )
)
def test_no_bytes_raise(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    assert isinstance(read_header(path), Header | Finding)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.binary(max_size=60),
    name=st.sampled_from(
        [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors.index.json",
            "model.safetensors",
        ]
    ),
)
def test_no_model_file_raises(model: Path, data: bytes, name: str) -> None:
    path = model / name
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(data)
    report = check_model(model)
    assert all(finding.message("en") and finding.message("zh") for finding in report.errors)
    if before is None:
        path.unlink()
    else:
        path.write_bytes(before)
