"""Hosts: joined by a one-time code with their own key, shown, drained, forgotten."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlmodel import select

from services.api.db.tables import HostRow, JoinCodeRow, RequestRow
from services.api.hosts.service import code_hash
from shared.bus import Bus
from shared.bus.credentials import bus_config
from shared.bus.keys import new_seed, public_key_of
from shared.bus.port import BusError, PermissionDenied
from shared.jobs.lifecycle import Change
from shared.jobs.status import JobStatus
from tests.conftest import BusFor, RunningBroker, eventually
from tests.integration.api.conftest import MakeYard
from tests.integration.api.yard import ApiYard, now

pytestmark = [pytest.mark.integration]


async def test_a_host_is_shown_with_what_runs_there(both: ApiYard) -> None:
    uuid = (await both.submit())["uuid"]
    await both.say(Change.RUNNING, uuid, status=JobStatus.RUNNING, host="h1", attempt=1)
    await both.say_host("h1", 2, runs=(uuid,))
    await both.say_host("h1", 1, online=False)
    (host,) = (await both.http.get("/api/v1/hosts/")).json()["items"]
    assert (host["id"], host["label"], host["online"], host["device"]) == (
        "h1",
        "box1",
        True,
        "cuda",
    )
    assert host["gpus"][0]["memory_mib"] == 81559
    assert host["jobs"] == [{"uuid": uuid, "name": "first", "status": "RUNNING"}]
    for key in ("h1", "box1"):
        assert (await both.http.get(f"/api/v1/hosts/{key}")).json()["id"] == "h1"
    listed = (await both.http.get("/api/v1/jobs/", params={"filter": "host=box1"})).json()
    assert [job["uuid"] for job in listed["items"]] == [uuid]
    listed = (await both.http.get("/api/v1/jobs/", params={"filter": "host!=box1"})).json()
    assert listed["items"] == []


async def test_draining_is_a_request_to_the_scheduler(both: ApiYard) -> None:
    await both.say_host()
    reply = await both.http.post("/api/v1/hosts/box1/drain", json={"stop_jobs": True})
    assert (reply.status_code, reply.json()["drained"]) == (202, True)
    assert (await both.http.post("/api/v1/hosts/h1/drain")).status_code == 202
    reply = await both.http.post("/api/v1/hosts/box1/undrain")
    assert (reply.status_code, reply.json()["drained"]) == (202, False)
    rows = both.rows(select(RequestRow).order_by(RequestRow.req_n))  # type: ignore[arg-type]
    told = [(r.key, r.req_n, r.body["drained"], r.body["stop_jobs"]) for r in rows]
    assert told == [("host:h1", 1, True, True), ("host:h1", 2, True, False), ("host:h1", 3, False, False)]  # fmt: skip
    reply = await both.http.post("/api/v1/hosts/box1/drain", json={"stop": 1})
    assert reply.status_code == 422


async def test_a_host_in_use_is_not_forgotten(both: ApiYard, broker: RunningBroker) -> None:
    await both.say_host("h1", 1, runs=("j",))
    assert (await both.http.delete("/api/v1/hosts/h1")).json()["code"] == "host_in_use"
    await both.say_host("h1", 2)
    assert (await both.http.delete("/api/v1/hosts/h1")).json()["code"] == "host_online"
    await both.say_host("h1", 3, online=False)
    assert (await both.http.delete("/api/v1/hosts/h1")).status_code == 204
    assert (await both.http.get("/api/v1/hosts/")).json()["items"] == []
    assert (await both.http.get("/api/v1/hosts/h1")).status_code == 404


async def test_two_hosts_of_one_label_are_told_apart(both: ApiYard) -> None:
    await both.say_host("h1")
    await both.say_host("h2")
    reply = await both.http.post("/api/v1/hosts/box1/drain")
    assert (reply.status_code, reply.json()["code"]) == (409, "ambiguous_host")
    assert "h1" in reply.json()["detail"]
    assert (await both.http.post("/api/v1/hosts/h2/drain")).status_code == 202


async def test_a_code_lets_one_host_in(
    make_yard: MakeYard, broker: RunningBroker, bus_for: BusFor
) -> None:
    yard = make_yard(nats_url=broker.url, api_token="CANARY-token")
    admin = yard.client(Authorization="Bearer CANARY-token")
    made = (await admin.post("/api/v1/hosts/join-codes")).json()
    code = made["code"]
    assert f"agent join http://127.0.0.1:8000 {code}" in made["command"]
    assert code not in str([r.model_dump() for r in yard.rows(select(JoinCodeRow))])
    seed = new_seed()
    body = {"code": code.lower(), "public_key": public_key_of(seed), "label": "box7"}
    reply = await yard.http.post("/api/v1/hosts/join", json=body)
    assert reply.status_code == 201, reply.text
    host = reply.json()["host_id"]
    assert reply.json()["nats_url"] == broker.url
    again = await yard.http.post("/api/v1/hosts/join", json=body)
    assert (again.status_code, again.json()["code"]) == (403, "join_code_invalid")
    (yard.home / "keys" / f"{host}.nk").write_text(seed)
    bus = await Bus.connect(bus_config(broker.settings, "agent", host), timeout=60)
    assert bus.is_connected
    listed = (await admin.get("/api/v1/hosts/")).json()["items"]
    assert [(h["id"], h["label"], h["online"]) for h in listed] == [(host, "box7", False)]

    assert (await admin.delete(f"/api/v1/hosts/{host}")).status_code == 204
    await eventually(lambda: not bus.is_connected, timeout=5)
    await bus.close()
    with pytest.raises((PermissionDenied, BusError)):
        await Bus.connect(bus_config(broker.settings, "agent", host), timeout=1)
    await admin.aclose()


async def test_codes_expire_and_bad_ones_are_refused(yard: ApiYard) -> None:
    key = public_key_of(new_seed())
    await yard.main.write(
        lambda s: s.add(
            JoinCodeRow(
                code_hash=code_hash("AAAAA-BBBBB"),
                created_at=now() - timedelta(hours=2),
                expires_at=now() - timedelta(hours=1),
                used_at=None,
            )
        )
    )
    for code in ("AAAAA-BBBBB", "WRONG-CODES"):
        reply = await yard.http.post(
            "/api/v1/hosts/join", json={"code": code, "public_key": key, "label": "x"}
        )
        assert (reply.status_code, reply.json()["code"]) == (403, "join_code_invalid")
        assert code not in reply.text
    for wrong in ({"public_key": "Uabc"}, {"label": "-oProxyCommand=x"}, {"label": "a\nb"}):
        body = {"code": "AAAAA-BBBBB", "public_key": key, "label": "x"} | wrong
        assert (await yard.http.post("/api/v1/hosts/join", json=body)).status_code == 422


async def test_a_key_that_the_broker_refuses_spends_no_code(
    make_yard: MakeYard, broker: RunningBroker
) -> None:
    yard = make_yard(nats_url=broker.url)
    code = (await yard.http.post("/api/v1/hosts/join-codes")).json()["code"]
    body = {"code": code, "public_key": "U" + "A" * 55, "label": "box"}
    reply = await yard.http.post("/api/v1/hosts/join", json=body)
    assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "public_key")
    assert yard.rows(select(HostRow)) == []
    good = body | {"public_key": public_key_of(new_seed())}
    assert (await yard.http.post("/api/v1/hosts/join", json=good)).status_code == 201
