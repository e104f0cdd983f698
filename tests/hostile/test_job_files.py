"""Hostile job files for `trainyard jobs submit`: one sentence on standard error, and nothing is run or sent."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import PATIENCE
from trainyard.cli.job_file import JobFileInvalid, read_job
from trainyard.cli.main import app

BOMB = 'a: &a ["lol","lol","lol","lol","lol","lol","lol","lol","lol"]\n' + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a0: &a0 {k0: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: 1}}\n" for n in range(1, 25)
)
FILES: list[tuple[str, str, bytes]] = [
    ("an alias bomb", "job.yaml", BOMB.encode()),
    ("a bomb of merges", "job.yaml", MERGES.encode()),
    ("a tag that runs a program", "job.yaml", b'name: !!python/object/apply:os.system ["touch canary"]\n'),
    ("a tag that makes an object", "job.yaml", b"name: !!python/name:os.system\n"),
    ("a tag of its own", "job.yaml", b"name: !secret /etc/passwd\n"),
    ("a doubled key", "job.yaml", b"batch_size: 1\nalgorithm: sft\nbatch_size: 64\n"),
    ("a doubled key inside", "job.yaml", b"secrets:\n  HF_TOKEN: a\n  HF_TOKEN: b\n"),
    ("a doubled key in JSON", "job.json", b'{"batch_size": 1, "batch_size": 64}'),
    ("two documents", "job.yaml", b"algorithm: sft\n---\nalgorithm: dpo\n"),
    ("an endless anchor", "job.yaml", b"a: &a [*a]\n"),
    ("deep", "job.yaml", b"a: " + b"[" * 20_000),
    ("deep JSON", "job.json", b'{"a":' + b"[" * 200_000),
    ("NaN in JSON", "job.json", b'{"learning_rate": NaN}'),
    ("infinity in YAML", "job.yaml", b"learning_rate: .inf\n"),
    ("not a number in YAML", "job.yaml", b"learning_rate: .nan\n"),
    ("an overflow", "job.yaml", b"learning_rate: 1e999\n"),
    ("bytes", "job.yaml", b"name: !!binary aGVsbG8=\n"),
    ("a set", "job.yaml", b"tags: !!set {a, b}\n"),
    ("a number for a key", "job.yaml", b"1: 2\n"),
    ("a list for a key", "job.yaml", b"? [a]\n: b\n"),
    ("a list", "job.yaml", b"- algorithm: sft\n"),
    ("a word", "job.yaml", b"sft\n"),
    ("nothing", "job.yaml", b""),
    ("invalid UTF-8", "job.yaml", b"name: \xff\n"),
    ("NUL", "job.yaml", b"name: a\0b\n"),
    ("a control character", "job.yaml", b"name: \x07\n"),
    ("a tab", "job.yaml", b"a:\n\tb: 1\n"),
    ("a lone surrogate", "job.json", b'{"name": "\\ud800"}'),
    ("20 MB", "job.yaml", b"name: " + b"x" * 20_000_000),
    ("5,000 digits", "job.yaml", b"max_steps: " + b"9" * 5000),
    ("5,000 digits in JSON", "job.json", b'{"max_steps": ' + b"9" * 5000 + b"}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_a_hostile_file_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(JobFileInvalid) as refused:
            read_job(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 5 * PATIENCE
    told = str(refused.value)
    assert name in told
    assert len(told) < 1000
    assert told.rstrip().endswith((".", ")"))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "missing"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "job.yaml"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
    began = time.monotonic()
    with pytest.raises(JobFileInvalid, match=r"job\.yaml"):
        read_job(path)
    assert time.monotonic() - began < 5 * PATIENCE


@pytest.mark.parametrize("item", ["a=!!python/name:os.system", "a=" + "[" * 20_000, "a=[&x [1], *x]", "=", "a=.nan", "a=1e999", "a={b: 1, b: 2}", "a=" + "9" * 5000], ids=range(8))  # fmt: skip
def test_a_hostile_override_is_refused(tmp_path: Path, item: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("algorithm: sft\n")
    with pytest.raises(JobFileInvalid) as refused:
        read_job(path, [item])
    assert len(str(refused.value)) < 1000


def test_what_looks_like_a_date_stays_a_text(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: 2026-01-01\ntags: [yes, 2026-01-01 10:00:00]\nlearning_rate: 1e-5\n")
    assert read_job(path) == {
        "name": "2026-01-01",
        "tags": [True, "2026-01-01 10:00:00"],
        "learning_rate": 1e-5,
    }


def test_the_command_says_it_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINYARD_URL", "http://127.0.0.1:1")
    path = tmp_path / "job.yaml"
    path.write_text(BOMB)
    done = CliRunner().invoke(app, ["jobs", "submit", str(path)])
    assert done.exit_code not in (0, None)
    assert "Traceback" not in done.output
    assert "job.yaml" in done.output.replace("\n", "")
