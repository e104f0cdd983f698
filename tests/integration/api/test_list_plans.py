"""How SQLite answers what is asked often: lists in the order of an index, searches and the outbox without reading in vain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event
from sqlmodel import Session

from services.api.jobs.cursor import Cursor
from services.api.jobs.repository import Selection, list_jobs
from services.api.outbox import next_batch
from services.api.repeats import _any_open
from tests.integration.api.yard import ApiYard

pytestmark = [pytest.mark.integration]
AFTER = "2026-11-22T00:00:00+00:00"


def plans(yard: ApiYard, selection: Selection, after: Cursor | None) -> list[str]:
    return plans_of(yard, lambda session: list_jobs(session, selection, after))


def plans_of(yard: ApiYard, ask: Callable[[Session], object]) -> list[str]:
    """The plan of each statement that `ask` sends, a line a step."""

    def work(session: Session) -> list[str]:
        connection = session.connection()
        asked: list[tuple[str, Any]] = []
        note = lambda *a: asked.append((a[2], a[3]))  # noqa: E731
        event.listen(connection, "before_cursor_execute", note)
        ask(session)
        event.remove(connection, "before_cursor_execute", note)
        found = []
        for statement, parameters in asked:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            found.append("\n".join(row[3] for row in rows))
        return found

    return yard.main.read_now(work)


@pytest.mark.parametrize(
    ("selection", "value"),
    [
        (Selection(), AFTER),
        (Selection(descending=False), AFTER),
        (Selection(sort="name"), "first"),
        (Selection(sort="priority"), 50),
        (Selection(status="RUNNING"), AFTER),
        (Selection(algorithm="sft"), AFTER),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
async def test_a_list_reads_its_page_in_the_order_of_an_index(
    yard: ApiYard, selection: Selection, value: str | int, deep: bool
) -> None:
    after = Cursor(selection.order, value, "0" * 36, selection.digest) if deep else None
    counts, page, rows = plans(yard, selection, after)
    assert "COVERING INDEX" in counts
    assert "TEMP B-TREE" not in page
    assert "COVERING INDEX" in page
    assert page.startswith("SEARCH" if deep or selection.status or selection.algorithm else "SCAN")
    assert rows.startswith("SEARCH job USING INDEX sqlite_autoindex_job_1 (uuid=?)")


@pytest.mark.parametrize("sort", ["status", "algorithm", "started_at", "finished_at"])
async def test_other_sorts_read_only_an_index(yard: ApiYard, sort: str) -> None:
    assert "COVERING INDEX" in plans(yard, Selection(sort=sort), None)[1]


async def test_a_search_reads_every_row_once(yard: ApiYard) -> None:
    await yard.submit(tags=["night"])
    for selection in (Selection(q="night"), Selection(filter="config.seed=1")):
        searched = plans(yard, selection, None)[0]
        assert searched.count("SCAN job") == 1
        assert "MATERIALIZE matched" in searched


async def test_what_follows_each_submit_reads_no_other_job(yard: ApiYard) -> None:
    await yard.submit()
    looked = plans_of(yard, lambda session: next_batch(session, "e1"))
    assert all(plan.startswith("SEARCH request USING") for plan in looked)
    assert plans_of(yard, _any_open) == ["SCAN job USING INDEX ix_job_unanswered"]
