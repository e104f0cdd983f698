"""An api whose database is older than the stream: every request is there once, with its own number, before anybody is served."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select

from services.api import restored
from services.api.db.positions import load_position, save_position
from services.api.db.tables import JobRow, RequestRow
from services.api.restored import heal
from shared.bus import Bus
from shared.restored import PENDING, RESTORED
from tests.conftest import BusFor, RunningBroker, eventually
from tests.integration.api.conftest import MakeYard
from tests.integration.api.test_outbox import confirmed, requests
from tests.integration.api.yard import ApiYard
from trainyard.backup.cut import copy, cut

pytestmark = pytest.mark.integration
KEY = {"Idempotency-Key": "k-after"}


async def mark(yard: ApiYard) -> None:
    await yard.main.write(lambda s: save_position(s, RESTORED, "r1", PENDING))


def by_uuid(yard: ApiYard, uuid: str) -> dict[str, Any]:
    (row,) = yard.rows(select(JobRow).where(col(JobRow.uuid) == uuid))
    return dict(row.model_dump())


async def lived(make_yard: MakeYard, home: Path, bus: Bus) -> tuple[ApiYard, dict[str, Any]]:
    """Submit before and after a copy of the database was made; return the api with the old one, and what was asked."""
    first = make_yard()
    await first.start(bus)
    old = await first.submit(name="old", priority=40)
    await eventually(lambda: confirmed(first))
    saved = home / "saved.db"
    with cut([home / "api" / "main.db"]) as readers:
        copy(readers[home / "api" / "main.db"], saved)
    new = await first.submit(headers=KEY, name="new", tags=["a"], description="d")
    assert (await first.act(old["uuid"], "pause")).status_code == 202
    assert (await first.act(new["uuid"], "cancel")).status_code == 202
    third = await first.submit(name="third", secrets={"HF_TOKEN": "hf_123456789"})
    asked = {
        "old": old["uuid"],
        "new": new["uuid"],
        "third": third["uuid"],
    }

    async def five() -> bool:
        return len(await requests(bus)) >= 5 and await confirmed(first)

    await eventually(five)
    asked["rows"] = {u: by_uuid(first, u) for u in (old["uuid"], new["uuid"])}
    asked["stream"] = await requests(bus)
    await first.close()
    for suffix in ("", "-wal", "-shm"):
        (home / "api" / f"main.db{suffix}").unlink(missing_ok=True)
    shutil.copyfile(saved, home / "api" / "main.db")
    return make_yard(), asked


def reaching(yard: ApiYard, broker: RunningBroker) -> ApiYard:
    """Let an api find the broker by its settings, as the service does before it serves."""
    settings = yard.settings.model_copy(update={"nats_url": broker.url})
    object.__setattr__(yard.services, "settings", settings)
    return yard


async def test_requests_made_since_the_backup_are_taken_back_once(
    make_yard: MakeYard, home: Path, streams: None, bus_for: BusFor, broker: RunningBroker
) -> None:
    bus = await bus_for("api")
    yard, asked = await lived(make_yard, home, bus)
    reaching(yard, broker)
    assert await heal(yard.services) is None, "an unmarked database takes nothing"
    await mark(yard)
    taken = await heal(yard.services)
    assert taken is not None
    assert sorted(taken.jobs) == sorted([asked["new"], asked["third"]])
    assert taken.without_secrets == [asked["third"]]
    for uuid, before in asked["rows"].items():
        after = by_uuid(yard, uuid)
        assert after == before | {k: after[k] for k in ("job_n", "answered_n", "state")}, uuid
    rows = yard.rows(select(RequestRow).order_by(col(RequestRow.position)))
    found = [(r.key.removeprefix("job:"), r.req_n, r.type) for r in rows]
    assert sorted(found) == sorted(asked["stream"])
    assert all(row.epoch for row in rows), "nothing is published again"
    at = yard.main.read_now(lambda s: load_position(s, RESTORED))
    assert (at.epoch, at.last_seq > PENDING) == ("r1", True)
    assert await heal(yard.services) is None, "and it is done once"
    # A repeated submit finds its job, and the next request gets the next number.
    reply = await yard.http.post(
        "/api/v1/jobs/", json=yard.body(name="new", tags=["a"], description="d"), headers=KEY
    )
    assert reply.json()["uuid"] == asked["new"]
    assert (await yard.act(asked["old"], "cancel")).status_code == 202
    assert by_uuid(yard, asked["old"])["req_n"] == 3


async def test_without_taking_back_a_number_would_be_used_twice(
    make_yard: MakeYard, home: Path, streams: None, bus_for: BusFor
) -> None:
    """What the whole is for, and that these tests would see it."""
    yard, asked = await lived(make_yard, home, await bus_for("api"))
    assert (await yard.act(asked["old"], "cancel")).status_code == 202
    numbers = [(job, n) for job, n, _ in asked["stream"]]
    rows = yard.rows(select(RequestRow).where(col(RequestRow.key) == f"job:{asked['old']}"))
    assert (asked["old"], max(r.req_n for r in rows)) in numbers


async def test_where_the_stream_is_gone_there_is_nothing_to_take_back(
    make_yard: MakeYard, broker: RunningBroker
) -> None:
    yard = make_yard()
    reaching(yard, broker)
    await mark(yard)
    taken = await heal(yard.services)
    assert taken is not None
    assert taken.jobs == []


async def test_a_broker_that_is_away_changes_nothing(
    make_yard: MakeYard, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restored, "BROKER_SECONDS", 0.5)
    yard = make_yard()
    reaching(yard, broker)
    await mark(yard)
    broker.stop()
    with pytest.raises(restored.NotHealed):
        await heal(yard.services)
    assert yard.main.read_now(restored.is_pending)
