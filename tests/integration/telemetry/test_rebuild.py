"""The read model made again from the streams: equal rows, telemetry and frame numbers untouched."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from services.api.db.positions import load_position
from services.api.db.tables import AttemptRow, CheckpointRow, JobEventRow, JobRow
from services.api.rebuild import rebuild
from shared.events.run import RunCheckpoint, RunExited, RunStarted
from shared.jobs.lifecycle import Change
from tests.conftest import eventually
from tests.integration.telemetry.conftest import Yard
from tests.unit.telemetry.messages import met, metric

pytestmark = pytest.mark.integration
TABLES = (JobRow, JobEventRow, AttemptRow, CheckpointRow)


def rows(yard: Yard) -> list[list[dict[str, Any]]]:
    def work(session: Any) -> list[list[dict[str, Any]]]:
        found = []
        for table in TABLES:
            dumped = [row.model_dump(mode="json") for row in session.exec(select(table)).all()]
            found.append(sorted(dumped, key=str))
        return found

    return yard.main.read_now(work)


async def history(yard: Yard) -> None:
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.tell("run", RunStarted(seq=1, t=1.0, pid=1, boot_id="b", warm=True))
    await yard.tell("met", met(1, [metric(1, loss=2.0)]))
    for step in (10, 20):
        fact = RunCheckpoint(seq=step // 10 + 1, t=1.0, step=step, path=f"/c/{step}", best=True)
        await yard.tell("run", fact)
    final = {"run": 4, "met": 1}
    await yard.tell("run", RunExited(seq=4, t=2.0, outcome="stopped", last_seq={"met": 1}))
    await yard.job(Change.PAUSED, 2, attempt=1, host="h1", final_seq=final)
    await yard.job(Change.RESUMED, 3, attempt=1)
    await yard.job(Change.ASSIGNED, 4, attempt=2, host="h1")
    await yard.tell("run", RunStarted(seq=1, t=3.0, pid=2, boot_id="b", warm=True), attempt=2)
    await eventually(lambda: yard.projector._positions["RUNS"].last_seq == 5)
    await eventually(lambda: len(yard.frames()) == 7)


async def test_a_rebuilt_model_is_the_same_and_frames_go_on(yard: Yard) -> None:
    await history(yard)
    await yard.projector.stop()
    before, frames = rows(yard), [f.seq for f in yard.frames()]
    position = yard.main.read_now(lambda s: load_position(s, "JOBS"))

    def damage(session: Any) -> None:
        wrong = {"status": "FAILED", "state": None, "attempt": 9}
        session.execute(update(JobRow).values(**wrong))
        session.execute(update(CheckpointRow).where(col(CheckpointRow.step) == 10).values(path="?"))
        session.execute(update(JobEventRow).values(change="?"))
        session.execute(update(AttemptRow).values(last_run_seq=99, outcome="?"))

    await yard.main.write(damage)
    assert rows(yard) != before
    report = await rebuild(yard.buses["api"], yard.main)
    assert report.applied == {"JOBS": 4, "RUNS": 5}
    assert rows(yard) == before
    assert yard.main.read_now(lambda s: load_position(s, "JOBS")) == position
    yard.projector = yard.new_projector()
    await yard.projector.start()
    await yard.tell("met", met(1, [metric(2, loss=1.0)]), attempt=2)
    await eventually(lambda: len(yard.frames()) == 8)
    assert [f.seq for f in yard.frames()] == [*frames, frames[-1] + 1]


async def test_what_the_streams_no_longer_hold_stays(sqlite_yard: Yard) -> None:
    yard = sqlite_yard
    await history(yard)
    await yard.projector.stop()
    before = rows(yard)

    def older(session: Any) -> None:
        created = session.get_one(JobRow, "j").created_at
        old = JobRow(uuid="old", name="old", algorithm="sft", config={}, created_at=created)
        session.add(old.sqlmodel_update({"status": "COMPLETED", "job_n": 7}))
        session.add(CheckpointRow(job="old", step=5, attempt=1, host="h1", kind="full", path="/old",
                                  created_at=created))  # fmt: skip

    await yard.main.write(older)
    await rebuild(yard.buses["api"], yard.main)
    after = rows(yard)
    assert next(r for r in after[0] if r["uuid"] == "old")["status"] == "COMPLETED"
    assert [r for r in after[3] if r["job"] == "old"]
    assert [r for r in after[0] if r["uuid"] != "old"] == before[0]


async def test_a_rebuild_that_fails_changes_nothing(
    sqlite_yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = sqlite_yard
    await history(yard)
    await yard.projector.stop()
    before = rows(yard)

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("services.api.rebuild.apply_main", broken)
    with pytest.raises(ZeroDivisionError):
        await rebuild(yard.buses["api"], yard.main)
    assert rows(yard) == before
