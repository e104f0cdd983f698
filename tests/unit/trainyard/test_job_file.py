"""Job files: YAML with floats as people write them, JSON, overrides, clear refusals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainyard.cli.job_file import JobFileInvalid, parse_overrides, read_job


def test_a_learning_rate_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("algorithm: sft\nlearning_rate: 1e-5\nname: 1e-5 run\nbatch_size: 2\n")
    assert read_job(file) == {
        "algorithm": "sft",
        "learning_rate": 1e-5,
        "name": "1e-5 run",
        "batch_size": 2,
    }


def test_overrides_win(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text('{"algorithm": "sft", "batch_size": 2}')
    body = read_job(file, ["batch_size=4", "tags=[a, b]", "learning_rate=2E-4"])
    assert body == {"algorithm": "sft", "batch_size": 4, "tags": ["a", "b"], "learning_rate": 2e-4}


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("job.yaml", "- a\n- b\n", "one a line"),
        ("job.yaml", "a: [", "not valid yaml"),
        ("job.json", "{", "not valid json"),
        ("job.yaml", "!!python/object/apply:os.getcwd []", "not valid yaml"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(
    tmp_path: Path, name: str, text: str, part: str
) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(JobFileInvalid, match=part) as refusal:
        read_job(file)
    assert name in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobFileInvalid, match="cannot be read"):
        read_job(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("item", ["learning_rate", "=3", "a=[1"])
def test_a_bad_override_is_refused(item: str) -> None:
    with pytest.raises(JobFileInvalid, match=re.escape(repr(item))):
        parse_overrides([item])
