"""The sales and general files: sizes, shapes, no copies of one another, and answers that recompute."""

import json
import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from shared.preflight.dataset import check_dataset

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "datasets"
TEXT_FILES = ("sales_sft.jsonl", "sales_dpo.jsonl", "ppo_general.json", "sales_grpo.jsonl")
GRAM = 6
_ASK = re.compile(r"[^。？！?.]*\\boxed.*$")


def rows(name: str) -> list[dict[str, Any]]:
    text = (FOLDER / name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        loaded: list[dict[str, Any]] = json.loads(text)
        return loaded
    return [json.loads(line) for line in text.splitlines()]


def own_text(row: dict[str, Any]) -> str:
    """What a row says itself, without the persona and the wording that asks for a box."""
    if "messages" in row:
        return "\n".join(turn["content"] for turn in row["messages"] if turn["role"] != "system")
    return "\n".join(
        _ASK.sub("", str(row[key])) for key in ("prompt", "chosen", "rejected") if key in row
    )


def grams(text: str) -> set[str]:
    letters = re.sub(r"[\W_]+", "", text)
    size = (
        3 * GRAM if text.isascii() else GRAM
    )  # an English word is several letters, a Chinese one about two
    return {letters[at : at + size] for at in range(max(1, len(letters) - size + 1))}


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("sales_sft.jsonl", "sft"),
        ("sales_dpo.jsonl", "dpo"),
        ("sales_dpo.jsonl", "reward_model"),
        ("ppo_general.json", "ppo"),
        ("ppo_general.json", "gspo"),
        ("sales_grpo.jsonl", "grpo"),
    ],
)
def test_preflight_accepts_the_file(name: str, algorithm: str) -> None:
    report = check_dataset(FOLDER / name, algorithm)
    assert (report.errors, report.warnings) == ([], [])
    assert report.rows >= 200


@pytest.mark.parametrize("name", TEXT_FILES)
def test_no_row_is_a_near_copy_of_another(name: str) -> None:
    table = [grams(own_text(row)) for row in rows(name)]
    worst = max(
        (len(one & two) / min(len(one), len(two)), a, b)
        for a, one in enumerate(table)
        for b, two in enumerate(table[:a])
    )
    assert worst[0] < 0.25, [own_text(rows(name)[at]) for at in worst[1:]]


@pytest.mark.parametrize("name", TEXT_FILES)
def test_no_phrase_is_worn_out(name: str) -> None:
    """A run of ten characters stands in at most one row in twenty."""
    table = [re.sub(r"[\W_]+", "", own_text(row)) for row in rows(name)]
    count = Counter(
        gram for text in table for gram in {text[at : at + 10] for at in range(len(text) - 9)}
    )
    phrase, often = count.most_common(1)[0]
    assert often <= len(table) / 20, phrase


@pytest.mark.parametrize("name", TEXT_FILES)
def test_openings_and_lengths_vary(name: str) -> None:
    texts = [own_text(row) for row in rows(name)]
    assert len(set(texts)) == len(texts)
    assert len({text[:24] for text in texts}) >= 0.97 * len(texts)
    lengths = sorted(len(text) for text in texts)
    assert lengths[-len(lengths) // 10] >= 1.2 * lengths[len(lengths) // 10]
    assert lengths[-1] >= 3 * lengths[0]


def test_dialogues() -> None:
    table = [row["messages"] for row in rows("sales_sft.jsonl")]
    with_persona = [talk for talk in table if talk[0]["role"] == "system"]
    assert 0.5 < len(with_persona) / len(table) < 0.8
    assert len({talk[0]["content"] for talk in with_persona}) >= 20
    for talk in table:
        turns = [turn["role"] for turn in talk if turn["role"] != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2)
    firsts = [
        next(turn["content"] for turn in talk if turn["role"] == "assistant") for talk in table
    ]
    assert sum("？" in first for first in firsts) > 0.7 * len(firsts), (
        "a good seller asks before recommending"
    )
    assert len({first[:6] for first in firsts}) > 0.9 * len(firsts)


PROMISE = re.compile(r"绝对|稳赚|肯定|保证[^底]|百分之百|包你|放心")


def test_chosen_is_better_in_what_can_be_learnt() -> None:
    table = rows("sales_dpo.jsonl")
    asks = (
        sum("？" in row["chosen"] for row in table),
        sum("？" in row["rejected"] for row in table),
    )
    assert asks[0] > 0.75 * len(table)
    assert asks[1] < 0.15 * len(table)
    promises = (
        sum(bool(PROMISE.search(row["rejected"])) for row in table),
        sum(bool(PROMISE.search(row["chosen"])) for row in table),
    )
    assert promises[0] > 3 * promises[1]
    polite = (
        sum(row["chosen"].count("您") for row in table),
        sum(row["rejected"].count("您") for row in table),
    )
    assert polite[0] > 4 * polite[1]
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in table)


def test_general_prompts_are_in_both_languages() -> None:
    prompts = [row["prompt"] for row in rows("ppo_general.json")]
    english = [prompt for prompt in prompts if prompt.isascii()]
    assert 60 <= len(english) <= len(prompts) - 60


def problems() -> dict[str, str]:
    lines = (
        (ROOT / "scripts" / "datasets" / "text" / "sales_grpo.txt")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    return dict(line.split("|") for line in lines)


def half_up(value: Fraction, digits: Fraction) -> Fraction:
    power = Fraction(10) ** int(digits)
    return Fraction((value * power + Fraction(1, 2)).__floor__()) / power


def recomputed(formula: str) -> Fraction:
    """The formula by Python itself, every number in it exact; independent of the generator's evaluator."""
    exact = re.sub(r"\d+(?:\.\d+)?", lambda m: f"F('{m.group()}')", formula)
    names = {
        "F": Fraction,
        "floor": lambda v: Fraction(v.__floor__()),
        "min": min,
        "round": half_up,
        "__builtins__": {},
    }
    return Fraction(eval(exact, names))  # our own file, no builtins


def test_every_solution_recomputes() -> None:
    formulas = problems()
    table = rows("sales_grpo.jsonl")
    assert len(table) == len(formulas)
    for row in table:
        question = next(text for text in formulas if row["prompt"].startswith(text))
        assert Fraction(Decimal(row["solution"])) == recomputed(formulas[question]), row
        assert re.fullmatch(r"\d+(\.\d+)?", row["solution"]), row
        assert "\\boxed{" in row["prompt"]


def said(question: str) -> set[Fraction]:
    """The numbers a question gives, also as the factors that discounts and percentages stand for."""
    found: set[Fraction] = set()
    for text, unit in re.findall(r"(\d[\d,]*(?:\.\d+)?)\s*(%|折|万|角)?", question):
        number = Fraction(text.replace(",", "").rstrip(","))
        factors = {
            "%": [number / 100],
            "折": [number / 10, number / 100],
            "万": [number * 10_000],
            "角": [number / 10],
        }
        for made in [number, *factors.get(unit, [])]:
            found |= {made, 1 + made, abs(1 - made)}
    if "千分之" in question:
        found |= {number / 1000 for number in list(found)}
    if "比是" in question or ":" in question:
        found |= {a / 10 for a in found}
    return found


def test_formulas_use_only_numbers_of_their_question() -> None:
    for question, formula in problems().items():
        known = said(question)
        for text in re.findall(r"\d+(?:\.\d+)?", formula):
            number = Fraction(text)
            assert (
                number in known
                or number in (10, 100, 1000)
                or (number.denominator == 1 and number <= 12)
            ), (text, question)


def test_the_files_are_made_again_byte_for_byte(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "scripts.datasets.build", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=480,
    )
    made = sorted(path.name for path in tmp_path.iterdir())
    assert len(made) == 7
    for name in made:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), (
            f"run python -m scripts.datasets.build ({name})"
        )


def test_the_folder_holds_data_alone() -> None:
    assert {path.suffix for path in FOLDER.rglob("*") if path.is_file()} <= {
        ".jsonl",
        ".json",
        ".md",
    }
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in FOLDER.glob("*.json*"):
        count = len(rows(path.name))
        assert path.name in readme
        assert f"{count:,}" in readme, (path.name, count)
