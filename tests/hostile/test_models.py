"""Hostile model folders, asked of the real api: refused by name, and no code of theirs is ever run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.target import SECONDS_AT_MOST, Target, check_refusal
from tests.integration.api.conftest import MakeYard, make_yard, plain_logs, sqlite_template
from tests.unit.preflight.test_model import CONFIG, model, write_json

__all__ = ["make_yard", "model", "plain_logs", "sqlite_template"]
pytestmark = [pytest.mark.e2e]
GROWTH_MIB = 200
Spoil = Callable[[Path], object]


class Exploit:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def config(**changes: Any) -> Spoil:
    return lambda folder: write_json(folder / "config.json", CONFIG | changes)


def text(name: str, content: str | bytes) -> Spoil:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def without(name: str, then: Spoil = lambda folder: None) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        then(folder)

    return spoil


def shards(*names: Any) -> Spoil:
    index = {"weight_map": {f"t{i}": name for i, name in enumerate(names)}}
    return without(
        "model.safetensors", lambda f: write_json(f / "model.safetensors.index.json", index)
    )


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Exploit(folder.parent / "canary")))


def remote_code(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        known = json.loads((folder / name).read_text())
        write_json(folder / name, known | {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}})
        (folder / "evil.py").write_text(f"open({str(folder.parent / 'canary')!r}, 'w')")

    return spoil


def header(data: bytes, length: int | None = None) -> Spoil:
    return text(
        "model.safetensors", struct.pack("<Q", len(data) if length is None else length) + data
    )


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
REFUSED: list[tuple[str, Spoil, str]] = [
    ("no configuration", without("config.json"), "not_a_model"),
    ("configuration of nothing", text("config.json", ""), ""),
    ("configuration that is a list", text("config.json", "[]"), ""),
    ("configuration that is deep", text("config.json", "[" * 200_000), ""),
    ("configuration of bytes", text("config.json", b"\xff\xfe\x00"), ""),
    ("configuration of 80 MB", text("config.json", b" " * 80_000_000), ""),
    ("model type that is a number", config(model_type=5), "not_a_model"),
    ("code of its own", remote_code("config.json"), "remote_code_required"),
    ("a tokenizer with code", remote_code("tokenizer_config.json"), "remote_code_required"),
    ("pickled weights", pickled, "unsafe_format"),
    ("no weights", without("model.safetensors"), ""),
    ("empty weights", text("model.safetensors", b""), "checkpoint_corrupt"),
    ("weights cut off", header(json.dumps({"a": TENSOR}).encode()), "checkpoint_corrupt"),
    ("a header of 1 TB", header(b"{}", 1 << 40), "checkpoint_corrupt"),
    ("a header of 2**64", header(b"{}", 2**64 - 1), "checkpoint_corrupt"),
    ("a deep header", header(b"[" * 100_000), "checkpoint_corrupt"),
    ("a header of garbage", header(os.urandom(64)), "checkpoint_corrupt"),
    ("a tensor of 2**118", header(json.dumps({"a": TENSOR | {"shape": [1 << 59, 1 << 59]}}).encode() + b"x" * 8, 62), "checkpoint_corrupt"),
    ("a missing shard", shards("a.safetensors"), "shard_missing"),
    ("a shard elsewhere", shards("../../../../etc/passwd"), "checkpoint_corrupt"),
    ("a shard by its whole path", shards("/etc/passwd"), "checkpoint_corrupt"),
    ("a shard that is pickled", shards("a.bin"), "checkpoint_corrupt"),
    ("a shard that is a number", shards(5), "checkpoint_corrupt"),
    ("5,000 shards", shards(*(f"{i}.safetensors" for i in range(5000))), "checkpoint_corrupt"),
    ("no tokenizer", without("tokenizer.json"), "tokenizer_missing"),
    ("a deep tokenizer", text("tokenizer.json", '{"a":' * 100_000), ""),
    ("a tokenizer of another", text("tokenizer.json", '{"model":{"vocab":{"a":999999}}}'), "vocab_mismatch"),
    ("an adapter of nothing", text("adapter_config.json", "{}"), "adapter_base_missing"),
    ("an adapter of itself", lambda f: write_json(f / "adapter_config.json", {"base_model_name_or_path": str(f)}), ""),
]  # fmt: skip


def refused(target: Target, path: object) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for language in ("zh", "en"):
        began = time.monotonic()
        reply = target.http.post(
            "/api/v1/jobs/",
            json=target.body(model_path=str(path)),
            headers={"Accept-Language": language},
        )
        assert time.monotonic() - began < SECONDS_AT_MOST
        found = check_refusal(reply, chinese=language == "zh")
    assert {error["field"] for error in found["errors"]} == {"model_path"}
    return found


@pytest.mark.parametrize(("spoil", "code"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_bad_model_is_refused(unharmed: Target, model: Path, spoil: Spoil, code: str) -> None:
    before = unharmed.api_mib()
    spoil(model)
    problem = refused(unharmed, model)
    assert not code or code in [error["code"] for error in problem["errors"]], problem
    assert not (model.parent / "canary").exists()
    assert unharmed.api_mib() - before < GROWTH_MIB


ABSURD: list[Any] = [10**30, -5, 0, "8", [8], None, 1.5, True, {"a": 1}]


@pytest.mark.parametrize("value", ABSURD, ids=str)
def test_absurd_numbers_end_in_an_answer(unharmed: Target, model: Path, value: Any) -> None:
    names = ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size")  # fmt: skip
    config(**dict.fromkeys(names, value))(model)
    reply = unharmed.http.post(
        "/api/v1/jobs:validate", json=unharmed.body(model_path=str(model), context_length=1_000_000)
    )
    if reply.status_code != 200:
        check_refusal(reply)
    assert len(reply.content) < 20_000


@pytest.mark.parametrize("text_", ['{"model_type":"qwen2","hidden_size":NaN}', '{"model_type":"qwen2","vocab_size":1e999}', '{"model_type":"qwen2","vocab_size":' + "9" * 9999 + "}"], ids=["NaN", "1e999", "digits"])  # fmt: skip
def test_numbers_that_are_none_end_in_an_answer(unharmed: Target, model: Path, text_: str) -> None:
    (model / "config.json").write_text(text_)
    reply = unharmed.http.post("/api/v1/jobs:validate", json=unharmed.body(model_path=str(model)))
    if reply.status_code != 200:
        check_refusal(reply)


def test_odd_paths_are_refused(unharmed: Target, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("x")
    (tmp_path / "etc").symlink_to("/etc")
    for path in ("pipe", "loop", "file", "etc", "nothing", "file/below", "../" * 30 + "etc"):
        refused(unharmed, tmp_path / path)
    for path in ("/dev/zero", "/proc/self", "/", "~nobody-of-that-name", "..", "./."):
        refused(unharmed, path)


async def test_beyond_loopback_nothing_outside_the_roots_is_looked_at(
    make_yard: MakeYard, tmp_path: Path, model: Path
) -> None:
    """A link or `..` leads out of the roots: refused alike whether something lies there or not."""
    root = tmp_path / "data"
    root.mkdir()
    rows = root / "rows.jsonl"
    rows.write_text('{"prompt":"a","response":"b"}\n')
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"prompt":"CANARY","response":"b"}\n')
    (root / "link.jsonl").symlink_to(secret)
    (root / "model").symlink_to(model)
    yard = make_yard(api_host="0.0.0.0", api_token="t" * 20, data_roots=str(root))
    headers = {"Authorization": f"Bearer {'t' * 20}"}

    async def ask(**fields: str) -> dict[str, Any]:
        body = yard.body(train_data_path=str(rows)) | fields
        reply = await yard.http.post("/api/v1/jobs/", json=body, headers=headers)
        assert reply.status_code == 422, reply.text
        return check_refusal(reply)

    outside = [str(secret), str(root / "link.jsonl"), str(root / ".." / "secret.jsonl"), "/etc/passwd", str(tmp_path / "not-there.jsonl")]  # fmt: skip
    for path in outside:
        problem = await ask(train_data_path=path)
        assert [e["code"] for e in problem["errors"]] == ["path_forbidden"], problem
        assert "TRAINYARD_DATA_ROOTS" in problem["detail"]
        assert "CANARY" not in str(problem)
    for path in (str(model), str(root / "model"), str(root / ".." / "base")):
        problem = await ask(model_path=path)
        assert [e["code"] for e in problem["errors"]] == ["path_forbidden"], problem
