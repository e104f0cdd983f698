"""One api for tests: real databases, its routes over ASGI, and helpers that speak as the scheduler and as a host."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx2
from sqlmodel import Session

from services.api.app import create_app
from services.api.background import Background
from services.api.db.databases import MAIN_SCHEMA, TELEMETRY_SCHEMA, migrate_main
from services.api.db.tables import JobRow
from services.api.deps import ApiServices
from services.api.link import BusLink
from services.api.projections.main import Item, apply_main
from services.api.settings import ApiSettings
from services.api.telemetry.database import migrate_telemetry
from shared.bus import Bus
from shared.bus.port import BusMessage
from shared.clock import SystemClock
from shared.db import Database
from shared.events import Envelope, Event
from shared.events.base import EventBase
from shared.events.job import JOB_EVENTS, HostUpdated
from shared.events.subjects import RunSubject
from shared.jobs.lifecycle import Change, JobState
from shared.jobs.resources import GpuInfo, HostInventory
from shared.keyring import Keyring
from tests.conftest import TEST_STORE_MIB

ROWS = "\n".join(f'{{"prompt": "p{i}", "response": "r{i}"}}' for i in range(8)) + "\n"
MISSING = "00000000-0000-7000-8000-000000000000"


class ApiYard:
    """An api whose projections a test drives by hand, or, with `start`, by the real broker."""

    def __init__(
        self, home: Path, url: str | None = None, *, migrated: bool = False, **settings: Any
    ) -> None:
        self.home = home
        self.settings = ApiSettings(
            home=home,
            checkpoint_dir=home / "checkpoints",
            database_url=url,
            nats_store_mib=TEST_STORE_MIB,
            **settings,
        )
        main = url or f"sqlite:///{home / 'api' / 'main.db'}"
        telemetry = url or f"sqlite:///{home / 'api' / 'telemetry.db'}"
        self.main = Database(main, schema=MAIN_SCHEMA)
        self.telemetry = Database(telemetry, synchronous="NORMAL", schema=TELEMETRY_SCHEMA)
        if not migrated:
            migrate_main(self.main)
            migrate_telemetry(self.telemetry)
        self.link = BusLink()
        self.services = ApiServices(
            settings=self.settings,
            main=self.main,
            telemetry=self.telemetry,
            link=self.link,
            clock=SystemClock(),
            keyring=Keyring.load(home / "keys" / "master.key"),
        )
        self.app = create_app(self.services)
        self.http = self.client()
        self.background: Background | None = None
        self.data = home / "data.jsonl"
        self.data.write_text(ROWS)
        (home / "run").mkdir(exist_ok=True)
        (home / "run" / "nats.json").touch()
        self._seq = 0

    def client(self, **headers: str) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=self.app),
            base_url="http://127.0.0.1:8000",
            headers=headers,
            timeout=120,
        )

    async def start(self, bus: Bus | None = None) -> None:
        if bus is not None:
            self.link.attach(bus)
        self.background = Background(self.services)
        await self.background.__aenter__()

    async def close(self) -> None:
        await self.http.aclose()
        if self.background is not None:
            await self.background.__aexit__(None, None, None)
        self.main.close()
        self.telemetry.close()

    def body(self, **fields: Any) -> dict[str, Any]:
        """The guide's own body."""
        return {
            "name": "first",
            "algorithm": "sft",
            "model_path": "org/model",
            "train_data_path": str(self.data),
            "num_gpus": 1,
            "learning_rate": 1e-5,
            "batch_size": 2,
            "num_epochs": 1,
        } | fields

    async def submit(self, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
        reply = await self.http.post("/api/v1/jobs/", json=self.body(**fields), headers=headers)
        assert reply.status_code == 201, reply.text
        found: dict[str, Any] = reply.json()
        return found

    async def job(self, uuid: str) -> dict[str, Any]:
        reply = await self.http.get(f"/api/v1/jobs/{uuid}")
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    async def act(self, uuid: str, verb: str) -> httpx2.Response:
        return await self.http.post(f"/api/v1/jobs/{uuid}/{verb}")

    async def say(self, change: Change, uuid: str, **fields: Any) -> JobState:
        """Speak as the scheduler: one event, projected at once."""
        known = self.main.read_now(lambda s: _state(s, uuid))
        state = JobState.model_validate(known.model_dump() | {"job_n": known.job_n + 1} | fields)
        event = JOB_EVENTS[change].model_validate({"at": now(), "state": state.model_dump()})
        await self.apply("JOBS", f"job.{uuid}", event)
        return state

    async def say_host(self, host: str = "h1", host_n: int = 1, **fields: Any) -> None:
        values: dict[str, Any] = {
            "at": now(),
            "host": host,
            "host_n": host_n,
            "label": "box1",
            "online": True,
            "drained": False,
            "last_seen": now(),
            "inventory": inventory(),
        }
        await self.apply("JOBS", f"host.{host}", HostUpdated(**(values | fields)))

    async def tell(self, uuid: str, fact: EventBase, host: str = "h1", attempt: int = 1) -> None:
        """Speak as a host: one run fact, projected at once."""
        await self.apply("RUNS", str(RunSubject("run", host, uuid, attempt)), fact)

    async def apply(self, stream: str, subject: str, *events: EventBase) -> None:
        items = [self.item(stream, subject, event) for event in events]
        await self.main.write(lambda session: apply_main(session, stream, items))
        self.services.hosts_seen = None

    def item(self, stream: str, subject: str, event: EventBase) -> Item:
        self._seq += 1
        data = event.model_dump_json().encode()
        message = BusMessage(subject, {}, data, stream, self._seq, now(), "e1")
        known = cast("Event", event)
        return message, Envelope(f"m{self._seq}", "/test", now()), known

    def rows(self, query: Any) -> Sequence[Any]:
        return self.main.read_now(lambda s: list(s.execute(query).scalars()))


def now() -> datetime:
    return datetime.now(UTC)


def inventory(**fields: Any) -> HostInventory:
    values: dict[str, Any] = {
        "hostname": "elsewhere",
        "label": "box1",
        "device": "cuda",
        "gpus": (GpuInfo(index=0, uuid="GPU-1", name="H100", memory_mib=81559),),
        "memory_mib": 128_000,
    }
    return HostInventory(**(values | fields))


def _state(session: Session, uuid: str) -> JobState:

    row = session.get_one(JobRow, uuid)
    if row.state:
        return JobState.model_validate(row.state)
    return JobState(job=uuid, req_n=row.req_n, priority=row.priority, submitted_at=row.created_at)
