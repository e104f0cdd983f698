"""The arithmetic files: right sums, right sizes, and an evaluation set that training has not seen either way round."""

import json
import re
from pathlib import Path

import pytest

from shared.preflight.dataset import check_dataset

FOLDER = Path(__file__).resolve().parents[3] / "datasets"
SIZES = {"arithmetic_sft": 4_000, "arithmetic_grpo": 7_700, "arithmetic_eval": 400}


def read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def pair(row: dict[str, str]) -> tuple[int, int]:
    match = re.fullmatch(r"(\d\d)\+(\d\d)=", row["prompt"])
    assert match, row
    return int(match[1]), int(match[2])


@pytest.mark.parametrize("name", SIZES)
def test_every_sum_is_right_and_stands_once(name: str) -> None:
    rows = read(name)
    assert len(rows) == SIZES[name]
    assert len({pair(row) for row in rows}) == len(rows)
    for row in rows:
        total = str(sum(pair(row)))
        assert row.get("solution", total) == total
        assert row.get("response", f"\\boxed{{{total}}}") == f"\\boxed{{{total}}}"
        assert ("response" in row) == (name != "arithmetic_grpo")
        assert ("solution" in row) == (name != "arithmetic_sft")


def test_evaluation_is_held_out_both_ways_round() -> None:
    held = {pair(row) for row in read("arithmetic_eval")}
    seen = {pair(row) for name in ("arithmetic_sft", "arithmetic_grpo") for row in read(name)}
    assert not held & seen
    assert not {(b, a) for a, b in held} & seen
    assert len(held | seen) == 8_100


def test_evaluation_covers_small_and_large_sums() -> None:
    totals = [sum(pair(row)) for row in read("arithmetic_eval")]
    assert min(totals) < 40
    assert max(totals) > 180
    assert 100 < sum(totals) / len(totals) < 120


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("arithmetic_sft", "sft"),
        ("arithmetic_eval", "sft"),
        ("arithmetic_grpo", "grpo"),
        ("arithmetic_eval", "grpo"),
        ("arithmetic_grpo", "gspo"),
        ("arithmetic_grpo", "ppo"),
    ],
)
def test_preflight_accepts_the_files(name: str, algorithm: str) -> None:
    report = check_dataset(FOLDER / f"{name}.jsonl", algorithm)
    assert (report.error_count, report.warning_count, report.rows) == (0, 0, SIZES[name])
