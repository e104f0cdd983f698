"""A home full of jobs, made by the product's own code: its submit path, its projections, its telemetry writer."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

from sqlalchemy import text
from sqlmodel import Session

from services.api.db.tables import AttemptRow, JobEventRow, JobRow, RequestRow
from services.api.deps import ApiServices
from services.api.jobs.submit import Prepared, body_hash, prepare, store
from services.api.main import make_services
from services.api.monitoring.hub import Hub
from services.api.projections.decoding import decoded
from services.api.projections.main import Item, apply_main
from services.api.projections.writing import TelemetryWriter
from services.api.settings import ApiSettings
from services.api.telemetry.database import take_over
from shared.bus.port import BusMessage
from shared.clock import SystemClock
from shared.events import Envelope, Event, encode
from shared.events.base import EventBase
from shared.events.job import JOB_EVENTS, JobAssigned
from shared.events.run import MetricsBatch
from shared.ids import new_job_id, new_message_id
from shared.jobs.lifecycle import Bilingual, Change, JobState, evolve
from shared.jobs.reasons import Reason

ROOT = Path(__file__).resolve().parent.parent
AT = datetime(2026, 11, 22, tzinfo=UTC)
GROUP = 500
LINES = 200
ALGORITHMS = ("sft", "dpo", "grpo", "reward_model")
DATA = {
    "sft": "sales_sft.jsonl",
    "dpo": "sales_dpo.jsonl",
    "grpo": "sales_grpo.jsonl",
    "reward_model": "sales_dpo.jsonl",
}


def body(number: int, **fields: Any) -> dict[str, Any]:
    """Return what a user sends for job `number`; fields that a list filters by differ from job to job."""
    algorithm = ALGORITHMS[number % len(ALGORITHMS)]
    found: dict[str, Any] = {
        "name": f"{algorithm}-sweep-{number % 40:02d}-run-{number:06d}",
        "description": f"learning rate sweep {number % 40}, seed {number}; asked for by team {number % 7}",
        "tags": [f"team-{number % 7}", "night" if number % 3 else "day", f"sweep-{number % 40}"],
        "algorithm": algorithm,
        "model_path": "Qwen/Qwen3-0.6B",
        "train_data_path": str(ROOT / "datasets" / DATA[algorithm]),
        "num_gpus": (1, 1, 1, 2, 4, 8)[number % 6],
        "learning_rate": 1e-5 * (1 + number % 9),
        "batch_size": 4,
        "priority": number % 10 * 10,
        "seed": number,
    }
    if algorithm == "grpo":
        found["reward_fn_type"] = "math_verify"
    return found | fields


def open_home(home: Path, url: str | None = None) -> ApiServices:
    """Return the api's services on a home of their own, migrated; close both databases afterwards."""
    (home / "run").mkdir(parents=True, exist_ok=True)
    return make_services(
        ApiSettings(home=home, checkpoint_dir=home / "checkpoints", database_url=url)
    )


def submit_all(services: ApiServices, bodies: Iterable[dict[str, Any]]) -> list[str]:
    """Store jobs as `POST /api/v1/jobs/` does, without HTTP; return their uuids in order."""
    made: list[str] = []
    waiting: list[Future[Any]] = []
    for one in bodies:
        prepared = prepare(services, one, None, body_hash(one))
        assert isinstance(prepared, Prepared)
        made.append(prepared.row.uuid)
        waiting.append(services.main.submit(partial(store, prepared=prepared)))
        if len(waiting) == GROUP:
            for done in waiting:
                done.result()
            waiting.clear()
    for done in waiting:
        done.result()
    return made


def live_through(services: ApiServices, uuids: list[str]) -> None:
    """Give jobs a life: seven of ten ended, one of twenty runs, the others wait; projected as the stream is."""
    for start in range(0, len(uuids), GROUP):
        part = uuids[start : start + GROUP]
        items = [i for number, u in enumerate(part, start) for i in _life(u, number)]
        services.main.submit(partial(apply_main, stream="JOBS", messages=items)).result()


def _life(uuid: str, number: int) -> Iterator[Item]:
    queued = AT + timedelta(seconds=number)
    state = JobState(job=uuid, req_n=1, priority=number % 10 * 10, submitted_at=queued)
    waits = Bilingual(en="needs 1 GPU, all GPUs are busy", zh="需要 1 张 GPU，目前所有 GPU 都在忙")
    steps: list[tuple[Change, dict[str, Any]]] = [
        (Change.QUEUED, {"queued_at": queued}),
        (Change.UPDATED, {"waiting_for": waits, "reason": Reason.NOT_ENOUGH_GPUS}),
    ]
    kind = number % 20
    host = f"h{number % 500:04d}"
    ended = queued + timedelta(minutes=20)
    if kind >= 5:
        assigned = {"attempt": 1, "host": host, "gpus": (0,), "gpu_uuids": (f"GPU-{host}-0",)}
        steps.append((Change.ASSIGNED, {**assigned, "reason": Reason.ASSIGNED}))
        began = {"started_at": queued + timedelta(minutes=1), "reason": None, "waiting_for": None}
        steps.append((Change.RUNNING, began))
    if kind >= 6:
        last = {"run": 4, "met": 3, "log": 9, "smp": 0, "sys": 3}
        end = {"final_seq": last, "finished_at": ended}
        if kind < 17:
            metrics = {"loss": 2.0 + number % 7 / 10, "grad_norm": 1.5}
            steps.append((Change.COMPLETED, {**end, "final_metrics": metrics}))
        elif kind < 19:
            steps.append((Change.FAILED, {**end, "reason": Reason.CUDA_OOM}))
        else:
            steps.append((Change.CANCELLED, {**end, "reason": Reason.USER}))
    for change, fields in steps:
        state = evolve(state, change, **fields)
        event = JOB_EVENTS[change](at=queued, state=state)
        message = BusMessage(f"job.{uuid}", {}, b"", "JOBS", number + 1, AT, "bench")
        yield (
            message,
            Envelope(f"{uuid}-{state.job_n}", "/trainyard/bench", AT),
            cast("Event", event),
        )


def write_metrics(services: ApiServices, job: str, names: tuple[str, ...], points: int) -> None:
    """Store `points` points of each metric of a job as the projector stores what its host sends."""
    asyncio.run(_write_metrics(services, job, names, points))


async def _write_metrics(
    services: ApiServices, job: str, names: tuple[str, ...], points: int
) -> None:
    writer = TelemetryWriter(services.telemetry, Hub(), SystemClock())
    writer.token = await services.telemetry.write(lambda s: take_over(s, 0))
    epoch = f"bench-{job}"
    state = JobState(job=job, job_n=1, attempt=1, host="h1")
    assigned = _message(f"job.{job}", JobAssigned(at=AT, state=state), "JOBS", 1, epoch)
    await writer.restart("JOBS", epoch)
    await writer.apply("JOBS", decoded([assigned])[0], [], assigned)
    await writer.restart("METRICS", epoch)
    batches = points // LINES
    for start in range(0, batches, 50):
        part = [_batch(job, n, names, epoch) for n in range(start, min(start + 50, batches))]
        await writer.apply("METRICS", decoded(part)[0], [], part[-1])


def metrics_batch(number: int, names: tuple[str, ...]) -> MetricsBatch:
    """Return LINES metric lines from step `number` * LINES on."""
    first = number * LINES
    items = tuple(
        {
            "t": 1e9 + step,
            "type": "metric",
            "step": step,
            "epoch": step / 1e5,
            "metrics": {n: math.sin(step / 1000 + i) + step % 7 for i, n in enumerate(names)},
        }
        for step in range(first, first + LINES)
    )
    return MetricsBatch(first_seq=first + 1, items=items)


def _batch(job: str, number: int, names: tuple[str, ...], epoch: str) -> BusMessage:
    return _message(f"met.h1.{job}.1", metrics_batch(number, names), "METRICS", number + 1, epoch)


def _message(subject: str, event: EventBase, stream: str, seq: int, epoch: str) -> BusMessage:
    headers, data = encode(event, Envelope("id", "/trainyard/bench", AT))
    return BusMessage(subject, headers, data, stream, seq, AT, epoch)


def multiply(services: ApiServices, uuids: Sequence[str], copies: int) -> None:
    """Insert `copies` of each job as the product wrote it, under new uuids, names and times."""

    def work(session: Session) -> None:
        for model in (JobRow, JobEventRow, AttemptRow, RequestRow):
            name = model.__tablename__
            rows = session.execute(text(f"SELECT * FROM {name}")).mappings().all()  # noqa: S608
            new = [_copied(row, made[copy], copy, len(uuids)) for copy in made for row in rows]
            columns = list(new[0])
            values = ", ".join(f":{column}" for column in columns)
            statement = text(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({values})")  # noqa: S608
            for start in range(0, len(new), 5000):
                session.execute(statement, new[start : start + 5000])

    made = {copy: {old: new_job_id() for old in uuids} for copy in range(1, copies + 1)}
    if copies > 0:
        services.main.submit(work).result()


def _copied(
    row: Mapping[Any, Any], new: Mapping[str, str], copy: int, count: int
) -> dict[str, Any]:
    """Return the row as the database has it, JSON as text, under its job's new uuid."""
    old: str = row.get("uuid") or row.get("job") or row["key"].removeprefix("job:")
    made: dict[str, Any] = {}
    for name, value in row.items():
        if name != "position":
            stored = json.dumps(value) if isinstance(value, dict | list) else value
            made[name] = stored.replace(old, new[old]) if isinstance(stored, str) else stored
    if "created_at" in row:
        later = timedelta(seconds=copy * count)
        at = row["created_at"]
        made["created_at"] = (
            str(datetime.fromisoformat(at) + later) if isinstance(at, str) else at + later
        )
        head, _, number = row["name"].rpartition("-")
        made["name"] = f"{head}-{int(number) + copy * count:06d}"
    if "id" in row:
        made["id"] = new_message_id()
    return made
