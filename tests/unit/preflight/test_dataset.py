"""The check of a dataset for an algorithm: every finding names row, column, place and remedy; all are counted."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.preflight.columns import ALGORITHMS, nearest_column, shapes
from shared.preflight.dataset import DatasetReport, check_dataset

TALK = [{"role": "user", "content": "在吗"}, {"role": "assistant", "content": "在的"}]


def check(folder: Path, rows: list[Any], algorithm: str, **more: Any) -> DatasetReport:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return check_dataset(path, algorithm, **more)


GOOD: dict[str, list[dict[str, Any]]] = {
    "sft": [{"prompt": "p", "response": "r", "extra": None}],
    "dpo": [{"prompt": "p", "chosen": "c", "rejected": "r"}],
    "reward_model": [{"prompt": "p", "chosen": "c", "rejected": "r"}],
    "ppo": [{"prompt": "p"}],
    "gspo": [{"prompt": "p", "solution": None}],
    "grpo": [
        {"prompt": "p", "solution": "91"},
        {"prompt": "p", "solution": 91},
        {"prompt": "p", "solution": 9.1},
    ],
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_good_rows(tmp_path: Path, algorithm: str) -> None:
    report = check(tmp_path, GOOD[algorithm], algorithm)
    assert report.ok
    assert report.errors == report.warnings == []
    assert report.rows == len(GOOD[algorithm])
    assert report.complete


def test_messages(tmp_path: Path) -> None:
    report = check(tmp_path, [{"messages": [{"role": "system", "content": "s"}, *TALK]}], "sft")
    assert report.ok
    assert report.conversational
    assert report.shape == "messages"


def talk(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


BAD: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("no response", "sft", {"prompt": "p"}, "missing_column", "response"),
    ("completion", "sft", {"prompt": "p", "completion": "r"}, "missing_column", "response"),
    ("null", "sft", {"prompt": None, "response": "r"}, "null_value", "prompt"),
    ("number", "sft", {"prompt": 5, "response": "r"}, "wrong_type", "prompt"),
    ("bool", "sft", {"prompt": "p", "response": True}, "wrong_type", "response"),
    ("list", "ppo", {"prompt": ["x"]}, "wrong_type", "prompt"),
    ("blank", "sft", {"prompt": "p", "response": " \n"}, "empty_text", "response"),
    (
        "same pair",
        "dpo",
        {"prompt": "p", "chosen": "x", "rejected": "x"},
        "chosen_equals_rejected",
        "rejected",
    ),
    (
        "same pair rm",
        "reward_model",
        {"prompt": "p", "chosen": "x", "rejected": "x"},
        "chosen_equals_rejected",
        "rejected",
    ),
    ("no rejected", "dpo", {"prompt": "p", "chosen": "x"}, "missing_column", "rejected"),
    ("no solution", "grpo", {"prompt": "p"}, "missing_column", "solution"),
    ("null solution", "grpo", {"prompt": "p", "solution": None}, "null_value", "solution"),
    ("bool solution", "grpo", {"prompt": "p", "solution": True}, "wrong_type", "solution"),
    ("no prompt", "gspo", {"solution": "1"}, "missing_column", "prompt"),
    ("messages text", "sft", {"messages": "hello"}, "wrong_type", "messages"),
    ("messages empty", "sft", {"messages": []}, "empty_text", "messages"),
    ("message text", "sft", {"messages": ["hello"]}, "wrong_type", "messages"),
    ("no role", "sft", {"messages": [{"content": "x"}]}, "missing_role", "messages"),
    ("from", "sft", {"messages": [{"from": "human", "content": "x"}]}, "missing_role", "messages"),
    (
        "no content",
        "sft",
        {"messages": [*TALK, {"role": "user", "content": "x"}, {"role": "assistant"}]},
        "missing_content",
        "messages",
    ),
    ("null content", "sft", talk(("user", "x"), ("assistant", None)), "null_value", "messages"),
    ("content list", "sft", talk(("user", "x"), ("assistant", [1])), "wrong_type", "messages"),
    ("content blank", "sft", talk(("user", "x"), ("assistant", "")), "empty_text", "messages"),
    ("human", "sft", talk(("human", "x"), ("assistant", "y")), "unknown_role", "messages"),
    ("number role", "sft", talk((3, "x"), ("assistant", "y")), "unknown_role", "messages"),
    ("user last", "sft", talk(("user", "x")), "last_turn_not_assistant", "messages"),
    (
        "late system",
        "sft",
        talk(("user", "x"), ("system", "s"), ("assistant", "y")),
        "system_not_first",
        "messages",
    ),
    ("no user", "sft", talk(("system", "s"), ("assistant", "y")), "no_user_turn", "messages"),
]


@pytest.mark.parametrize(
    ("algorithm", "row", "code", "column"),
    [case[1:] for case in BAD],
    ids=[case[0] for case in BAD],
)
def test_bad_row(
    tmp_path: Path, algorithm: str, row: dict[str, Any], code: str, column: str
) -> None:
    good = GOOD[algorithm][0] if "messages" not in row else {"messages": TALK}
    report = check(tmp_path, [good, row, good], algorithm)
    assert [(f.code, f.line, f.column, f.field) for f in report.errors] == [
        (code, 2, column, "train_data_path")
    ]
    finding = report.errors[0]
    assert "Line 2" in finding.message_en
    assert "第 2 行" in finding.message("zh")
    assert report.rows == 3
    assert report.error_count == 1
    assert not report.ok


def test_names_of_other_tools_are_recognised(tmp_path: Path) -> None:
    report = check(tmp_path, [{"question": "p", "completion": "r"}], "sft")
    hints = {finding.column: finding.value for finding in report.errors}
    assert hints == {"prompt": "question", "response": "completion"}
    assert 'Rename "completion" to "response"' in report.errors[1].message_en
    assert nearest_column("solution", ["prompt", "answer"]) == "answer"
    assert nearest_column("chosen", ["choosen", "x"]) == "choosen"
    assert nearest_column("prompt", ["Prompt "]) == "Prompt "
    assert nearest_column("rejected", ["a", "b"]) is None


def test_all_errors_are_counted_and_twenty_listed(tmp_path: Path) -> None:
    report = check(tmp_path, [{"prompt": "p", "response": None} for _ in range(500)], "sft")
    assert report.error_count == 500
    assert [f.line for f in report.errors] == list(range(1, 21))


def test_the_answer_key_of_grpo(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "answer": "1"}]
    assert check(tmp_path, rows, "grpo", answer_key="answer").ok
    assert check(tmp_path, rows, "grpo").errors[0].value == "answer"


def test_mixed_shapes(tmp_path: Path) -> None:
    report = check(tmp_path, [GOOD["sft"][0], {"messages": TALK}], "sft")
    assert [(f.code, f.line) for f in report.errors] == [("mixed_shapes", 2)]


def test_turns_that_do_not_alternate_are_a_warning(tmp_path: Path) -> None:
    report = check(tmp_path, [talk(("user", "a"), ("user", "b"), ("assistant", "c"))], "sft")
    assert report.ok
    assert [f.code for f in report.warnings] == ["roles_do_not_alternate"]
    assert report.warning_count == 1


def test_max_rows_ends_the_reading(tmp_path: Path) -> None:
    report = check(tmp_path, [GOOD["sft"][0]] * 10 + [{"prompt": "p"}], "sft", max_rows=10)
    assert (report.rows, report.complete, report.ok) == (10, False, True)
    assert check(tmp_path, [GOOD["sft"][0]] * 10, "sft", max_rows=10).complete


def test_csv_and_parquet_name_a_missing_column_once(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,response\n" + "a,b\n" * 100)
    report = check_dataset(path, "sft")
    assert [(f.code, f.column, f.row, f.line) for f in report.errors] == [
        ("missing_column", "prompt", None, None)
    ]
    assert report.error_count == 1
    pq.write_table(
        pa.table({"prompt": ["a", None, "c"], "output": ["x", "y", "z"]}), tmp_path / "a.parquet"
    )
    assert [f.value for f in check_dataset(tmp_path / "a.parquet", "sft").errors] == ["output"]


def test_parquet_rows_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"messages": [TALK, TALK[:1]]}), path)
    assert [(f.code, f.row) for f in check_dataset(path, "sft").errors] == [
        ("last_turn_not_assistant", 2)
    ]
    pq.write_table(pa.table({"prompt": ["a", None], "solution": [1.5, float("nan")]}), path)
    assert [(f.code, f.row, f.column) for f in check_dataset(path, "grpo").errors] == [
        ("null_value", 2, "prompt"),
        ("wrong_type", 2, "solution"),
    ]


def test_report_figures(tmp_path: Path) -> None:
    report = check(tmp_path, [{"prompt": "p", "response": "r", "note": 1}], "sft")
    data = (tmp_path / "a.jsonl").read_bytes()
    assert report.sha256 == hashlib.sha256(data).hexdigest()
    assert (report.bytes, report.columns, report.format) == (
        len(data),
        ["prompt", "response", "note"],
        "jsonl",
    )


def test_a_file_that_is_only_broken_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("x\n" * 30)
    report = check_dataset(path, "sft", field="eval_data_path")
    assert (report.error_count, len(report.errors), report.rows) == (30, 20, 30)
    assert {f.field for f in report.errors} == {"eval_data_path"}
    assert check_dataset(tmp_path / "none.jsonl", "sft").errors[0].code == "dataset_not_found"


def test_an_unknown_algorithm_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="unknown algorithm"):
        shapes("ppq")


VALUES: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", ""]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["prompt", "response", "messages", "chosen", "rejected", "solution", "completion", "角色", ""]
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.dictionaries(NAMES, VALUES, max_size=4), min_size=1, max_size=5),
    algorithm=st.sampled_from(ALGORITHMS),
)
def test_no_row_raises(tmp_path: Path, rows: list[dict[str, Any]], algorithm: str) -> None:
    report = check(tmp_path, rows, algorithm)
    assert report.rows == len(rows)
    assert report.ok == (report.error_count == 0) == (not report.errors)
