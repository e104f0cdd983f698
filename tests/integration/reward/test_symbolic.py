"""Computer algebra in killable processes: right, bounded in time, and nobody's neighbour suffers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from services.reward.core.answers import Question, judge
from services.reward.core.compare import Outcome
from services.reward.symbolic.pool import SymbolicPool, Unverified
from shared.rewards.rule_specs import MathVerify
from tests.conftest import PATIENCE
from tests.unit.reward.cases import ASKED

pytestmark = pytest.mark.integration
SECONDS = 120.0
FUZZY = MathVerify(type="math_verify", compare="fuzzy")
STUCK = Question("5", r"\sum_{n=1}^{1000000000} n^{-2}")
"""The guard refuses it long before; here it shows what happens when something slips through."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[SymbolicPool]:
    made = SymbolicPool(2)
    await made.warm()
    yield made
    made.close()


@pytest.mark.parametrize("case", ASKED, ids=lambda c: c[5].replace(" ", "_"))
@pytest.mark.asyncio(loop_scope="module")
async def test_formulas(case: tuple[str, str, str, str, int, str], pool: SymbolicPool) -> None:
    question = judge(FUZZY, case[2], case[3])
    assert isinstance(question, Question)
    outcome = await pool.ask(question, SECONDS)
    assert (outcome is Outcome.EQUAL) == bool(case[4])


@pytest.mark.asyncio(loop_scope="module")
async def test_a_stuck_item_ends_in_time_and_its_neighbours_go_on(pool: SymbolicPool) -> None:
    async def timed(question: Question, seconds: float) -> tuple[Outcome, float]:
        began = time.monotonic()
        return await pool.ask(question, seconds), time.monotonic() - began

    stuck = asyncio.create_task(timed(STUCK, 3.0))
    await asyncio.sleep(0)
    others = [await timed(Question(f"x+{n}", f"{n}+x"), SECONDS) for n in range(5)]
    outcome, seconds = await stuck
    assert [o for o, _ in others] == [Outcome.EQUAL] * 5
    assert outcome is Outcome.TOO_COMPLEX
    assert 3.0 <= seconds < 3.5 + 2.0 * PATIENCE, (
        "the limit, and the start of a process where none was idle"
    )


@pytest.mark.asyncio(loop_scope="module")
async def test_a_gold_that_cannot_be_read_is_not_the_answers_fault(pool: SymbolicPool) -> None:
    assert await pool.ask(Question("((((", "x"), SECONDS) is Outcome.GOLD_UNPARSEABLE


@pytest.mark.asyncio(loop_scope="module")
async def test_an_answer_that_cannot_be_read_is_wrong(pool: SymbolicPool) -> None:
    assert await pool.ask(Question("x+1", "(((("), SECONDS) is Outcome.DIFFERENT


@pytest.mark.asyncio(loop_scope="module")
async def test_the_queue_is_bounded() -> None:
    small = SymbolicPool(1, bound=2)
    try:
        asked = [asyncio.create_task(small.ask(Question("x+1", "1+x"), SECONDS)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BufferError):
            await small.ask(Question("x+1", "1+x"), SECONDS)
        assert [await a for a in asked] == [Outcome.EQUAL] * 2
    finally:
        small.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_process_that_gets_no_processor_says_nothing_of_the_solution() -> None:
    starved = SymbolicPool(1)
    try:
        await starved.warm()
        (idle,) = starved._idle
        psutil.Process(idle.process.pid).suspend()
        with pytest.raises(Unverified) as found:
            await starved.ask(Question("x+1", "1+x"), 0.5)
        assert found.value.timeout
    finally:
        starved.close()
