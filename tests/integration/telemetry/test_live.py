"""REST and WebSocket over a real server: snapshot, resume, endings, refusals, slow clients."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from sqlmodel import update
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from services.api.auth import Gate
from services.api.deps import ApiServices
from services.api.jobs.models import JobRow
from services.api.link import BusLink
from services.api.monitoring.live import live_routes
from services.api.monitoring.routes import telemetry_routes
from services.api.problems import install_problems
from services.api.settings import ApiSettings
from shared.errors import not_found
from shared.events.run import RunCheckpoint, RunStarted, SampleBatch, SystemBatch
from shared.jobs.lifecycle import Change
from shared.jobs.reasons import Lang
from shared.keyring import Keyring
from tests.conftest import eventually
from tests.integration.telemetry.conftest import Yard
from tests.unit.telemetry.messages import log, met, metric

pytestmark = pytest.mark.integration
KNOWN = {"j", "queued"}


async def read_job(uuid: str, lang: Lang) -> dict[str, Any]:
    if uuid not in KNOWN:
        raise not_found("job", "任务", uuid)
    return {"uuid": uuid, "lang": lang, "status": "PENDING"}


class Site:
    """The served routes."""

    def __init__(self, port: int, token: str | None) -> None:
        self.base = f"127.0.0.1:{port}"
        self.token = token

    def live(self, query: str = "", job: str = "j", **options: Any) -> connect:
        return connect(f"ws://{self.base}/api/v1/monitoring/{job}/live{query}", **options)

    async def get(self, path: str, **options: Any) -> httpx2.Response:
        async with httpx2.AsyncClient(base_url=f"http://{self.base}", timeout=60) as client:
            return await client.get(f"/api/v1/jobs/{path}", **options)


@asynccontextmanager
async def served(yard: Yard, token: str | None = None) -> AsyncIterator[Site]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    settings = ApiSettings(api_token=token, api_port=port, allowed_origins="https://ui.example")
    app = FastAPI()
    app.state.services = ApiServices(
        settings=settings,
        main=yard.main,
        telemetry=yard.telemetry,
        link=BusLink(),
        clock=yard.clock,
        keyring=Keyring.__new__(Keyring),
        hub=yard.hub,
    )
    install_problems(app)
    app.include_router(telemetry_routes(read_job))
    app.include_router(live_routes(read_job))
    app.add_middleware(Gate, settings=settings)
    config = uvicorn.Config(app, log_level="error", lifespan="off", ws="websockets-sansio")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    await eventually(lambda: server.started)
    try:
        yield Site(port, token)
    finally:
        server.should_exit = True
        await task
        listener.close()


@pytest.fixture
async def site(sqlite_yard: Yard) -> AsyncIterator[Site]:
    async with served(sqlite_yard) as found:
        yield found


async def next_frame(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(60):
        found: dict[str, Any] = json.loads(await client.recv())
        return found


async def rest_of(client: ClientConnection) -> tuple[list[dict[str, Any]], int | None, str]:
    frames = []
    try:
        async with asyncio.timeout(60):
            while True:
                frames.append(json.loads(await client.recv()))
    except ConnectionClosed as closed:
        code = closed.rcvd.code if closed.rcvd else None
        return frames, code, closed.rcvd.reason if closed.rcvd else ""


async def started(yard: Yard) -> None:
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    await yard.tell("run", RunStarted(seq=1, t=1.0, pid=1, boot_id="b", warm=True))
    await yard.tell("met", met(1, [metric(n, loss=1 / (n + 1)) for n in range(3)]))
    await yard.tell("log", log(1, ["one", "two"]))
    await yard.tell("run", RunCheckpoint(seq=2, t=1.0, step=2, path="/c/checkpoint-2", best=True))
    await eventually(lambda: len(yard.frames()) == 7)


async def test_snapshot_then_frames_then_a_normal_close(sqlite_yard: Yard, site: Site) -> None:
    await started(sqlite_yard)
    async with site.live() as client:
        snapshot = await next_frame(client)
        assert (snapshot["type"], snapshot["seq"]) == ("snapshot", 7)
        data = snapshot["data"]
        assert data["job"] == {"uuid": "j", "lang": "en", "status": "PENDING"}
        assert data["latest_metrics"]["step"] == 2
        assert [line["message"] for line in data["logs"]] == ["one", "two"]
        assert [(c["step"], c["best"], c["last"]) for c in data["checkpoints"]] == [(2, True, True)]
        await sqlite_yard.tell("met", met(4, [metric(3, loss=0.2)]))
        frame = await next_frame(client)
        assert frame["data"] == {"attempt": 1, "step": 3, "epoch": 0.3, "metrics": {"loss": 0.2}}
        assert frame["seq"] == 8
        assert frame["time"].endswith("Z")
        await sqlite_yard.job(Change.COMPLETED, 2, attempt=1, host="h1", final_seq={"met": 4})
        frames, code, _ = await rest_of(client)
        assert [(f["type"], f["data"]["status"]) for f in frames] == [("status", "COMPLETED")]
        assert code == 1000
    # The job's row is behind: it says PENDING yet, and no status frame will follow that corrects the snapshot.
    await sqlite_yard.main.write(lambda s: s.execute(update(JobRow).values(job_n=1)))
    async with site.live() as client:
        frames, code, _ = await rest_of(client)
        assert ([f["type"] for f in frames], code) == (["snapshot"], 1000)
        assert frames[0]["data"]["job"]["status"] == "COMPLETED"


async def test_a_client_that_comes_back_misses_nothing(sqlite_yard: Yard, site: Site) -> None:
    await started(sqlite_yard)
    got: list[int] = []
    sent = 3
    since = "?since=0"
    for _ in range(5):
        async with site.live(since) as client:
            for _ in range(4):
                await sqlite_yard.tell("met", met(sent + 1, [metric(sent, loss=0.1)]))
                sent += 1
                got.append((await next_frame(client))["seq"])
        await sqlite_yard.tell("met", met(sent + 1, [metric(sent, loss=0.1)]))
        sent += 1
        since = f"?since={got[-1]}"
    final = {"met": sent}
    await sqlite_yard.job(Change.FAILED, 2, attempt=1, host="h1", final_seq=final)
    async with site.live(since) as client:
        frames, code, _ = await rest_of(client)
    got += [f["seq"] for f in frames]
    assert got == list(range(1, got[-1] + 1))
    assert (frames[-1]["data"]["status"], code) == ("FAILED", 1000)
    async with site.live(f"?since={got[-1]}") as client:
        assert await rest_of(client) == ([], 1000, "")


REFUSALS = (
    ("?since=-1", "j", 4400, "0 or more"),
    ("?since=abc", "j", 4400, "frame number"),
    ("?since=", "j", 4400, "frame number"),
    ("?since=1e3", "j", 4400, "frame number"),
    ("?since=99", "j", 4416, "without since"),
    ("?since=1", "queued", 4416, "without since"),
    ("", "nobody", 4404, "nobody"),
)


async def test_refusals_say_what_to_do(sqlite_yard: Yard, site: Site) -> None:
    await started(sqlite_yard)
    for query, job, code, words in REFUSALS:
        async with site.live(query, job=job) as client:
            frames, got, reason = await rest_of(client)
        assert (frames, got) == ([], code), query
        assert words in reason, query


async def test_refusals_in_chinese(sqlite_yard: Yard, site: Site) -> None:
    headers = {"Accept-Language": "zh-CN"}
    async with site.live("?since=x", additional_headers=headers) as client:
        _, code, reason = await rest_of(client)
    assert (code, "帧序号" in reason) == (4400, True)


async def test_a_job_that_waits_has_a_snapshot(sqlite_yard: Yard, site: Site) -> None:
    async with site.live(job="queued") as client:
        snapshot = await next_frame(client)
        assert (snapshot["seq"], snapshot["data"]["logs"]) == (0, [])
        await sqlite_yard.job(Change.QUEUED, 1, job="queued")
        assert (await next_frame(client))["seq"] == 1


async def test_foreign_pages_and_strangers_are_refused_before_the_handshake(
    sqlite_yard: Yard,
) -> None:
    async with served(sqlite_yard, token="secret-token") as site:
        headers = {"Authorization": "Bearer secret-token"}
        for origin, status in (("https://evil.example", 403), ("http://127.0.0.1:1", 403)):
            with pytest.raises(InvalidStatus) as caught:
                async with site.live(job="queued", origin=origin, additional_headers=headers):
                    pass
            assert caught.value.response.status_code == status
        with pytest.raises(InvalidStatus) as caught:
            async with site.live(job="queued"):
                pass
        assert caught.value.response.status_code == 401
        for origin in ("https://ui.example", f"http://{site.base}"):
            options = {"origin": origin, "subprotocols": ["trainyard.v1", "bearer.secret-token"]}
            async with site.live(job="queued", **options) as client:
                assert client.subprotocol == "trainyard.v1"
                assert (await next_frame(client))["type"] == "snapshot"


async def test_a_client_that_never_reads_delays_nobody(
    sqlite_yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 clients, one of which reads nothing: the others get every frame, it is thrown out.

    Each batch waits for the readers of the one before, which share this process's only thread with the server.
    """
    monkeypatch.setattr("services.api.monitoring.live.BEHIND_SECONDS", 2.0)
    yard = sqlite_yard
    await yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    batches, size = 50, 20
    async with served(yard) as site:
        stuck = await site.live("?since=0", max_queue=1, compression=None).__aenter__()
        stuck.transport.pause_reading()
        assert yard.hub.watchers <= 1

        read: list[list[int]] = []

        async def read_all() -> list[int]:
            seqs: list[int] = []
            read.append(seqs)
            async with site.live("?since=0") as client:
                while not seqs or seqs[-1] < 1 + batches * size:
                    frame = await next_frame(client)
                    assert frame["type"] != "gap"
                    seqs.append(frame["seq"])
                return seqs

        readers = [asyncio.create_task(read_all()) for _ in range(19)]
        await eventually(lambda: yard.hub.watchers == 20)
        for n in range(batches):
            await yard.tell("log", log(n * size + 1, ["x" * 8000] * size))
            told = 1 + (n + 1) * size
            await eventually(lambda t=told: all(s and s[-1] >= t for s in read), every=0.005)  # type: ignore[misc]
        async with asyncio.timeout(240):
            for seqs in await asyncio.gather(*readers):
                assert seqs == list(range(1, 2 + batches * size))
        await eventually(lambda: yard.hub.watchers == 0, timeout=15)
        stuck.transport.abort()


async def test_metrics_over_rest(sqlite_yard: Yard, site: Site) -> None:
    await started(sqlite_yard)
    line = metric(3, loss=None, reward=1.0)
    await sqlite_yard.tell("met", met(4, [line | {"nonfinite": {"loss": "nan"}}]))
    await eventually(lambda: len(sqlite_yard.frames()) == 8)
    answer = (await site.get("j/metrics", params={"names": "loss,reward", "from": 1})).json()
    assert answer == {
        "x": [1, 2, 3],
        "series": {"loss": [1 / 2, 1 / 3, None], "reward": [None, None, 1.0]},
        "nonfinite": {"loss": {"2": "nan"}},
        "attempts": [{"attempt": 1, "from": 1, "to": 3, "points": 4}],
        "raw_count": 4,
        "downsampled": False,
        "last_seq": 8,
    }
    times = (await site.get("j/metrics", params={"x": "time", "points": 2})).json()
    assert times["x"] == [1e9, 1e9 + 3]
    assert times["downsampled"]
    assert (await site.get("queued/metrics")).json()["series"] == {}


PROBLEMS = (
    ("nobody/metrics", 404, None),
    ("nobody/logs", 404, None),
    ("nobody/logs/download", 404, None),
    ("nobody/samples", 404, None),
    ("nobody/system", 404, None),
    ("j/metrics?x=weeks", 422, "x"),
    ("j/metrics?points=0", 422, "points"),
    ("j/metrics?points=10001", 422, "points"),
    ("j/metrics?points=many", 422, "points"),
    ("j/metrics?from=nan", 422, "from"),
    ("j/metrics?from=9&to=1", 422, "from"),
    ("j/metrics?names=,", 422, "names"),
    ("j/logs?level=LOUD", 422, "level"),
    ("j/logs?after=-1", 422, "after"),
    ("j/logs?limit=0", 422, "limit"),
    ("j/samples?sort=size", 422, "sort"),
    ("j/samples?step=inf", 422, "step"),
)


async def test_bad_questions_get_a_problem(sqlite_yard: Yard, site: Site) -> None:
    await started(sqlite_yard)
    for path, status, field in PROBLEMS:
        answer = await site.get(path, headers={"Accept-Language": "zh"})
        assert answer.status_code == status, path
        assert answer.headers["content-type"].startswith("application/problem+json"), path
        if field:
            assert answer.json()["errors"][0]["field"].endswith(field), path


async def test_logs_by_window_level_and_text(sqlite_yard: Yard, site: Site) -> None:
    await sqlite_yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    lines = [f"Step {n}/30" for n in range(30)]
    await sqlite_yard.tell("log", log(1, lines))
    odd = (
        {"t": 1.0, "level": "ERROR", "message": "CUDA out of memory 100%_"},
        {"t": 1.0, "level": "WARNING", "message": "dropped", "gap": {"lines": 3, "bytes": 9}},
    )
    await sqlite_yard.tell("log", log(31, []).model_copy(update={"items": odd}))
    await eventually(lambda: len(sqlite_yard.frames()) == 33)

    async def page(**query: Any) -> dict[str, Any]:
        found: dict[str, Any] = (await site.get("j/logs", params=query)).json()
        return found

    newest = await page(limit=3)
    assert newest["items"][0]["message"] == "Step 29/30"
    assert newest["items"][2]["gap"] == {"lines": 3, "bytes": 9}
    assert newest["next"] is None
    above = await page(limit=3, before=newest["previous"])
    assert [i["message"] for i in above["items"]] == lines[26:29]
    got: list[str] = []
    cursor: int | None = 0
    while cursor is not None:
        part = await page(after=cursor, limit=10)
        got += [i["message"] for i in part["items"]]
        cursor = part["next"]
    assert got[:30] == lines
    assert len(got) == 32
    assert [i["level"] for i in (await page(level="WARNING"))["items"]] == ["ERROR", "WARNING"]
    assert [i["message"] for i in (await page(q="cuda OUT"))["items"]] == [odd[0]["message"]]
    assert [i["message"] for i in (await page(q="%_"))["items"]] == [odd[0]["message"]]
    answer = await site.get("j/logs/download")
    text = answer.text.splitlines()
    assert (text[0], text[30]) == ("[INFO] Step 0/30", "[ERROR] CUDA out of memory 100%_")
    assert "attachment" in answer.headers["content-disposition"]


async def paged(site: Site, sort: str) -> list[float | None]:
    """Read all samples, one a page."""
    rewards, after = [], None
    while True:
        params = {"sort": sort, "limit": 1} | ({} if after is None else {"after": after})
        page = (await site.get("j/samples", params=params)).json()
        rewards += [item["reward"] for item in page["items"]]
        after = page["next"]
        if after is None:
            return rewards


async def test_samples_and_system(sqlite_yard: Yard, site: Site) -> None:
    await sqlite_yard.job(Change.ASSIGNED, 1, attempt=1, host="h1")
    samples = tuple(
        {
            "t": 1.0,
            "type": "sample",
            "step": n // 2,
            "prompt": f"add {n}",
            "completion": str(n),
            "reward": r,
        }
        for n, r in enumerate([0.5, None, 1.0, 0.0])
    )
    await sqlite_yard.tell("smp", SampleBatch(first_seq=1, items=samples))
    gpus = tuple(
        {"t": 100.0 + n, "gpus": [{"index": 0, "utilization": n}], "rss_mib": 5} for n in range(9)
    )
    await sqlite_yard.tell("met", SystemBatch(first_seq=1, items=gpus))
    await eventually(lambda: len(sqlite_yard.frames()) == 14)
    best = (await site.get("j/samples", params={"sort": "-reward", "limit": 2})).json()["items"]
    assert [s["reward"] for s in best] == [1.0, 0.5]
    first = (await site.get("j/samples", params={"step": 0, "sort": "reward"})).json()["items"]
    assert [s["reward"] for s in first] == [0.5, None]
    for sort, rewards in (
        ("-reward", [1.0, 0.5, 0.0, None]),
        ("reward", [0.0, 0.5, 1.0, None]),
        ("-step", [0.0, 1.0, None, 0.5]),
        ("step", [None, 0.5, 0.0, 1.0]),
    ):
        assert await paged(site, sort) == rewards, sort
    named = await site.get("j/samples", params={"prompt": "ADD 1"})
    assert [s["completion"] for s in named.json()["items"]] == ["1"]
    wrong = await site.get("j/samples", params={"after": 1})
    assert (wrong.status_code, wrong.json()["code"]) == (404, "not_found")
    system = (await site.get("j/system")).json()
    assert system["time"] == [100.0 + n for n in range(9)]
    assert system["gpus"][0]["utilization"] == list(range(9))
    thin = (await site.get("j/system", params={"points": 3, "from": 102})).json()
    assert (thin["raw_count"], thin["downsampled"]) == (7, True)
    assert thin["time"] == [102.0, 105.0, 108.0]
