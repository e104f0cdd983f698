"""Secrets go in and never come out, but to the attempt they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlmodel import select

from services.api.calls import SecretDesk
from services.api.db.tables import JobSecretRow, RequestRow
from shared.errors import TrainyardError
from shared.events.calls import SecretQuery, SecretReply
from shared.jobs.lifecycle import Change
from shared.jobs.status import JobStatus
from shared.keyring import Keyring
from tests.integration.api.conftest import MakeYard
from tests.integration.api.yard import ApiYard

pytestmark = [pytest.mark.contract]
CANARY = "CANARY-5f2c9e71-secret"
SSH = "CANARY-77aa-password"


async def ask(yard: ApiYard, uuid: str, host: str = "h1", attempt: int = 1) -> SecretReply:
    query = SecretQuery(job=uuid, attempt=attempt).model_dump_json().encode()
    reply = await SecretDesk(yard.services).answer(f"secret.{host}", query)
    assert reply is not None
    return reply


async def test_no_route_and_no_file_holds_a_secret(both: ApiYard) -> None:
    job = await both.submit(
        secrets={"HF_TOKEN": CANARY, "PIN": "1234"},
        run_mode="ssh", ssh_host="gpu", ssh_username="u", ssh_password=SSH,
    )  # fmt: skip
    uuid = job["uuid"]
    seen = [str(job)]
    base = f"/api/v1/jobs/{uuid}"
    paths = [base, f"{base}/events", f"{base}/secrets", f"{base}/checkpoints"]
    seen += [(await both.http.get(path)).text for path in paths]
    seen.append((await both.http.get("/api/v1/jobs/")).text)
    seen.append((await both.act(uuid, "clone")).text)
    seen += [str(row.body) for row in both.rows(select(RequestRow))]
    rows = both.rows(select(JobSecretRow))
    seen += [row.ciphertext for row in rows]
    assert len(rows) == 3
    assert not any(CANARY in text or SSH in text for text in seen)
    listed = (await both.http.get(f"/api/v1/jobs/{uuid}/secrets")).json()
    assert [(s["name"], s["last4"]) for s in listed] == [("HF_TOKEN", "cret"), ("PIN", ""), ("ssh_password", "word")]  # fmt: skip
    both.main.engine.dispose()
    for file in both.home.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert CANARY.encode() not in content, file
            assert SSH.encode() not in content, file


async def test_secrets_are_set_replaced_and_deleted(both: ApiYard) -> None:
    uuid = (await both.submit())["uuid"]
    base = f"/api/v1/jobs/{uuid}/secrets"
    for value in ("first-value-1", "other-value-2"):
        reply = await both.http.put(f"{base}/HF_TOKEN", json={"value": value})
        assert reply.status_code == 204
        assert reply.content == b""
    assert [s["last4"] for s in (await both.http.get(base)).json()] == ["ue-2"]
    assert (await both.http.get(f"{base}/HF_TOKEN")).status_code == 405
    for name in ("lower", "LD_PRELOAD", "PATH", "A" * 65, "a b"):
        reply = await both.http.put(f"{base}/{name}", json={"value": CANARY})
        assert reply.status_code == 422, name
        assert CANARY not in reply.text
    for wrong in ({"value": 5}, {"value": ""}, {}, {"value": CANARY, "x": CANARY}):
        reply = await both.http.put(f"{base}/HF_TOKEN", json=wrong)
        assert reply.status_code == 422
        assert CANARY not in reply.text
    assert (await both.http.delete(f"{base}/HF_TOKEN")).status_code == 204
    assert (await both.http.delete(f"{base}/HF_TOKEN")).status_code == 404


async def test_the_scheduler_hears_which_secrets_a_job_has(both: ApiYard) -> None:
    uuid = (await both.submit(secrets={"HF_TOKEN": CANARY}))["uuid"]
    base = f"/api/v1/jobs/{uuid}/secrets"
    for name in ("WANDB_API_KEY", "WANDB_API_KEY", "reward_model_api_key"):
        assert (await both.http.put(f"{base}/{name}", json={"value": CANARY})).status_code == 204
    assert (await both.http.delete(f"{base}/HF_TOKEN")).status_code == 204
    assert (await both.http.delete(f"{base}/HF_TOKEN")).status_code == 404
    mine = select(RequestRow).where(RequestRow.key == f"job:{uuid}")
    rows = sorted(both.rows(mine), key=lambda row: row.req_n)
    assert [row.req_n for row in rows] == [1, 2, 3, 4]
    assert [row.body["secret_names"] for row in rows] == [
        ["HF_TOKEN"],
        ["HF_TOKEN", "WANDB_API_KEY"],
        ["HF_TOKEN", "WANDB_API_KEY", "reward_model_api_key"],
        ["WANDB_API_KEY", "reward_model_api_key"],
    ]
    assert not any(CANARY in str(row.body) for row in rows)


async def test_only_the_host_of_the_running_attempt_gets_them(both: ApiYard) -> None:
    uuid = (await both.submit(secrets={"HF_TOKEN": CANARY}))["uuid"]
    await both.say(Change.ASSIGNED, uuid, host="h1", attempt=1)
    assert (await ask(both, uuid)).values == {"HF_TOKEN": CANARY}
    for host, attempt in (("h2", 1), ("h1", 0)):
        reply = await ask(both, uuid, host, attempt)
        assert (reply.ok, reply.values) == (False, {}), (host, attempt)
    await both.say(Change.REQUEUED, uuid, host="h2", attempt=2)
    assert not (await ask(both, uuid, "h1", 1)).ok
    assert (await ask(both, uuid, "h2", 2)).ok
    await both.say(Change.COMPLETED, uuid, status=JobStatus.COMPLETED, host="h2", attempt=2)
    assert not (await ask(both, uuid, "h2", 2)).ok
    assert not (await ask(both, "no-such-job")).ok
    assert await SecretDesk(both.services).answer("secret.h1", b"garbage") is None


async def test_a_lost_key_is_named_and_other_jobs_work(make_yard: MakeYard, home: Path) -> None:
    yard = make_yard()
    key_file = home / "keys" / "master.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    uuid = (await yard.submit(secrets={"HF_TOKEN": CANARY}))["uuid"]
    await yard.say(Change.ASSIGNED, uuid, host="h1", attempt=1)
    (key_id,) = [row.key_id for row in yard.rows(select(JobSecretRow))]
    old = key_file.read_text()

    key_file.unlink()
    fresh = make_yard()
    reply = await ask(fresh, uuid)
    assert not reply.ok
    assert key_id in (reply.error or "")
    assert CANARY not in str(reply)
    await fresh.submit()
    await fresh.submit(secrets={"HF_TOKEN": "another-value"})

    key_file.write_text(key_file.read_text() + old)
    rotated = make_yard()
    assert (await ask(rotated, uuid)).values == {"HF_TOKEN": CANARY}

    key_file.write_text("not a key\n")
    broken = make_yard()
    await broken.submit()
    refused = await broken.http.post(
        "/api/v1/jobs/", json=broken.body(secrets={"HF_TOKEN": CANARY})
    )
    assert (refused.status_code, refused.json()["code"]) == (503, "master_key_unusable")
    assert CANARY not in refused.text


def test_a_ciphertext_cannot_pose_as_another_secret(home: Path) -> None:
    ring = Keyring.load(home / "keys" / "master.key")
    key_id, text = ring.encrypt("job-1", "HF_TOKEN", CANARY)
    assert ring.decrypt(key_id, text, "job-1", "HF_TOKEN") == CANARY
    for job, name in (("job-2", "HF_TOKEN"), ("job-1", "OTHER")):
        with pytest.raises(TrainyardError) as refused:
            ring.decrypt(key_id, text, job, name)
        assert refused.value.code == "master_key_unusable"
    assert Keyring.load(home / "keys" / "master.key").current == key_id
