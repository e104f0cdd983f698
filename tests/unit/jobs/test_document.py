"""The page about a job's life is generated, whole and up to date."""

from __future__ import annotations

import pytest

from shared.jobs import document
from shared.jobs.lifecycle import TRANSITIONS, Change
from shared.jobs.reasons import Reason


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_file_is_up_to_date(lang) -> None:
    path = document.OUTPUTS[lang]
    assert path.exists(), "run python -m shared.jobs.document"
    assert path.read_text(encoding="utf-8") == document.render(lang), (
        "run python -m shared.jobs.document"
    )


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_everything_is_on_the_page(lang) -> None:
    page = document.render(lang)
    for change in Change:
        assert f"`job.{change}.v1`" in page
    for reason in Reason:
        assert f"`{reason}`" in page
    assert set(document.CHANGES) == set(Change)


def test_the_diagram_has_exactly_the_arrows_of_the_table() -> None:
    drawn = set()
    for line in document.diagram().splitlines():
        if " --> " in line and "[*]" not in line:
            ends, labels = line.strip().split(": ")
            source, target = ends.split(" --> ")
            drawn |= {(source, label, target) for label in labels.split(", ")}
    assert drawn == {(s.value, c.value, t.value) for (s, c), t in TRANSITIONS.items() if s is not t}


def test_it_is_written_where_it_is_asked_to(tmp_path) -> None:
    document.main({"zh": tmp_path / "a" / "b.md"})
    assert (tmp_path / "a" / "b.md").read_text(encoding="utf-8") == document.render("zh")
