"""A caller that goes away must not take the database's writer with it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from sqlalchemy import func, insert, select

from services.api.telemetry import tables
from shared.db import Database

ROW = {"id": 1, "job": "j", "frame_seq": 0, "job_n": 0, "deleted": 0, "latest": "{}"}
ROW |= {"latest_attempt": 0, "tail_lines": 0, "tail_points": 0}


async def test_the_writer_outlives_a_cancelled_caller(telemetry: Database) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        started.set()
        assert go_on.wait(60)

    running = asyncio.ensure_future(telemetry.write(slow))
    await asyncio.to_thread(started.wait, 60)
    queued = asyncio.ensure_future(
        telemetry.write(lambda s: s.execute(insert(tables.job_live).values(**ROW)))
    )
    await asyncio.sleep(0)
    for task in (running, queued):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    go_on.set()
    async with asyncio.timeout(60):
        await telemetry.write(lambda s: None)
    count = telemetry.read_now(
        lambda s: s.execute(select(func.count()).select_from(tables.job_live)).scalar_one()
    )
    assert count == 0
