"""`make bench`: rows are measured, kept and shown; a group that fails costs no other its rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import page, run
from benchmarks.row import Row, percentile

ROOT = Path(__file__).resolve().parents[3]


def row(what: str) -> Row:
    return Row(what, "2/s", "1/s", "2.0", "≥ 1", True, "by counting")


def broken(_quick: bool) -> list[Row]:
    raise RuntimeError("no such thing here")


def options(folder: Path, *more: str) -> list[str]:
    return ["--quick", "--results", str(folder), "--page", str(folder / "page.md"), *more]


def test_a_cheap_group_is_measured_kept_and_shown(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "run.py"), *options(tmp_path, "--only", "schedule")],
        capture_output=True, text=True, timeout=400, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = page.load(tmp_path, ["schedule"])
    assert len(result.rows) == 4
    assert result.failed is None
    shown = (tmp_path / "page.md").read_text()
    for measured in result.rows:
        assert f"| {measured.what} | {measured.ours} | {measured.baseline} |" in shown
        assert float(measured.ratio) > 0


def test_a_group_that_fails_costs_no_other_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.keep(tmp_path, "broken", [row("from an earlier run")])
    groups = {"first": lambda _: [row("one")], "broken": broken, "last": lambda _: [row("three")]}
    monkeypatch.setattr(run, "GROUPS", groups)
    assert run.main(options(tmp_path)) == 1
    shown = (tmp_path / "page.md").read_text()
    for what in ("one", "three", "from an earlier run"):
        assert f"| {what} | 2/s | 1/s | 2.0 | ≥ 1 | yes |" in shown
    assert "RuntimeError: no such thing here" in shown
    assert run.main(options(tmp_path, "--only", "first,last")) == 0


def test_quick_figures_are_not_kept_beside_real_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "GROUPS", {"first": lambda _: [row("one")]})
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    assert run.main(["--quick"]) == 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        run.main(["--only", "nothing"])


@pytest.mark.parametrize(
    ("values", "part", "expected"),
    [([3.0], 0.95, 3.0), ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0), (list(map(float, range(1, 101))), 0.95, 95.0)],
)  # fmt: skip
def test_percentile_is_the_nearest_rank(values: list[float], part: float, expected: float) -> None:
    assert percentile(values, part) == expected
