"""The chunk store against a plain list: whatever is stored, in whatever order it is sealed, reads the same."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from services.api.telemetry import chunks, tables
from services.api.telemetry.chunks import seal, tail_is_full
from services.api.telemetry.frames import read_frames
from services.api.telemetry.ledger import Ledger
from services.api.telemetry.records import packed, to_json
from services.api.telemetry.series import ChartQuery, chart
from shared.db import Database

VALUES = st.floats(allow_nan=True, allow_infinity=True, width=64)
LINE = st.tuples(
    st.integers(1, 3),
    st.integers(0, 30),
    st.dictionaries(st.sampled_from(["loss", "lr", "eval_loss"]), VALUES, min_size=1),
)
SEAL = st.just("seal")


@contextmanager
def store(folder: str) -> Iterator[Database]:
    database = Database(f"sqlite:///{Path(folder) / 't.db'}", synchronous="NORMAL")
    try:
        tables.METADATA.create_all(database.engine)
        yield database
    finally:
        database.close()


def add(database: Database, attempt: int, step: float, values: dict[str, float]) -> None:
    def work(session: Any) -> None:
        ledger = Ledger(session, ["j"])
        live = ledger.job("j")
        body = to_json({name: packed(value) for name, value in values.items()})
        columns = {"attempt": attempt, "step": step, "epoch": step / 10, "time": 1e9 + step}
        ledger.add_line(live, {**columns, "body": body}, len(values))
        for name, value in values.items():
            live.latest[name] = [packed(value), step]
        ledger.flush()

    database.submit(work).result(10)


def seal_now(database: Database) -> None:
    database.submit(lambda s: seal(s, 1)).result(10)


def model_series(lines: list[tuple[int, int, dict[str, float]]], name: str) -> dict[int, float]:
    """Newest attempt wins per step; within one the last value."""
    found: dict[int, tuple[int, float]] = {}
    for attempt, step, values in lines:
        if name in values and attempt >= found.get(step, (0, 0.0))[0]:
            found[step] = (attempt, values[name])
    return {step: value for step, (_, value) in sorted(found.items())}


def same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or a == b


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(LINE, SEAL), max_size=40))
def test_what_is_stored_reads_the_same_sealed_or_not(script: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, store(folder) as database:
        lines: list[tuple[int, int, dict[str, float]]] = []
        for action in script:
            if action == "seal":
                if lines:
                    seal_now(database)
            else:
                add(database, *action)
                lines.append(action)
        result = database.read_now(lambda s: chart(s, "j", ChartQuery()))
        frames = database.read_now(lambda s: read_frames(s, 1, 0, len(lines))) if lines else []
    for name in {n for _, _, values in lines for n in values}:
        expected = model_series(lines, name)
        column = dict(zip(result.x, result.series[name], strict=True))
        marks = {
            result.x[int(i)]: float(text) for i, text in result.nonfinite.get(name, {}).items()
        }
        got = {x: marks.get(x, v) for x, v in column.items() if x in marks or v is not None}
        assert sorted(got) == sorted(expected)
        assert all(same(got[step], expected[step]) for step in expected)
    assert [f.seq for f in frames] == list(range(1, len(lines) + 1))
    for frame, (attempt, step, values) in zip(frames, lines, strict=True):
        assert (frame.data["attempt"], frame.data["step"]) == (attempt, step)
        assert set(frame.data["metrics"]) == set(values)
        for name, value in values.items():
            if math.isfinite(value):
                assert frame.data["metrics"][name] == value
            else:
                assert frame.data["metrics"][name] is None
                assert same(float(frame.data["nonfinite"][name]), value)


def test_chunks_are_filled_up_and_say_what_they_hold(telemetry: Database, monkeypatch: Any) -> None:
    monkeypatch.setattr(chunks, "CHUNK_POINTS", 8)
    for step in range(20):
        values = {"loss": float(step)} | ({"eval_loss": math.nan} if step % 5 == 0 else {})
        add(telemetry, 1, step, values)
        if step % 6 == 5:
            seal_now(telemetry)
    seal_now(telemetry)
    c = tables.metric_chunk.c
    rows = telemetry.read_now(
        lambda s: s.execute(
            select(
                c.name, c.points, c.step_min, c.step_max, c.value_min, c.value_max, c.value_last
            ).order_by(c.name, c.first_seq)
        ).all()
    )
    assert [tuple(r) for r in rows] == [
        ("eval_loss", 4, 0.0, 15.0, None, None, None),
        ("loss", 8, 0.0, 7.0, 0.0, 7.0, 7.0),
        ("loss", 8, 8.0, 15.0, 8.0, 15.0, 15.0),
        ("loss", 4, 16.0, 19.0, 16.0, 19.0, 19.0),
    ]
    left = telemetry.read_now(
        lambda s: s.execute(select(func.count()).select_from(tables.metric_line)).scalar_one()
    )
    assert left == 0


@pytest.mark.parametrize(
    ("lines", "points", "full"),
    [(4095, 8190, False), (4096, 4096, True), (300, 300_000, True), (10, 300_000, False)],
)
def test_when_a_tail_is_sealed(lines: int, points: int, full: bool) -> None:
    assert tail_is_full(lines, points) is full


def test_a_chunk_keeps_every_bit(telemetry: Database) -> None:
    values = [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan]
    for step, value in enumerate(values):
        add(telemetry, 1, step, {"v": value})
    seal_now(telemetry)
    blob = telemetry.read_now(lambda s: s.execute(select(tables.metric_chunk.c.value)).scalar_one())
    assert blob == np.array(values, dtype="<f8").tobytes()
