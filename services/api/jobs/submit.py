"""Accepting a job: parsed, checked, and durable with its request in one transaction."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from services.api.db.tables import (
    CheckpointRow,
    HostRow,
    JobDependencyRow,
    JobRow,
    JobSecretRow,
)
from services.api.deps import ApiServices
from services.api.jobs.actions import Action
from services.api.jobs.placement import KnownHost, place_of
from services.api.jobs.preflight import Findings, Preflight, Surroundings
from services.api.jobs.repository import pending_actions
from services.api.outbox import add_request
from services.api.secrets.store import seal
from shared.db import DatabaseFull
from shared.disk.levels import shortage
from shared.errors import FieldProblem, conflict, invalid
from shared.events.requests import JobSubmitRequested
from shared.ids import new_job_id
from shared.jobs.status import JobStatus
from shared.specs import (
    JobModel,
    JobSpec,
    dependencies,
    parse_job_spec,
    parse_model_path,
    split_secrets,
)

KEY_LONGEST = 255
KEY_PATTERN = r"^[!-~](?:[ -~]{0,253}[!-~])?$"
"""For OpenAPI; `idempotency_key` says it in words."""
HOSTS_SECONDS = 1.0
"""Where a job may run only decides which checks are made early; the host makes them all again."""
_INSERT = insert(JobRow.__table__)  # type: ignore[attr-defined]
_PREFLIGHT = Preflight()
"""Caches by path and mtime; nothing in it depends on the app it was made for."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A body that may become a job."""

    spec: JobSpec
    config: dict[str, Any]
    secrets: dict[str, str]
    findings: Findings


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job ready to be stored."""

    row: JobRow
    checked: Checked
    secrets: list[JobSecretRow]


async def check(services: ApiServices, body: Any) -> Checked:
    """Parse and check a body as `submit` would. Raises TrainyardError 422 with every mistake found, or 409."""
    found = await asyncio.to_thread(checked, services, body)
    needs = dependencies(found.spec)
    if needs:
        await services.main.read(lambda session: check_dependencies(session, found.spec, needs))
    return found


def checked(services: ApiServices, body: Any) -> Checked:
    """Do what `check` does, in this thread: it reads files."""
    spec = parse_job_spec(body)
    settings = services.settings
    hosts = recent_hosts(services)
    embedded = (settings.home / "run" / "nats.json").exists()
    around = Surroundings(
        place_of(spec, hosts, socket.gethostname(), embedded=embedded),
        settings.roots,
        settings.checkpoint_dir,
        tuple(hosts),
    )
    findings = _PREFLIGHT.check(spec, around)
    if findings.errors:
        raise invalid(findings.errors)
    config, secrets = split_secrets(spec)
    return Checked(spec, dict(config), secrets, findings)


async def submit(services: ApiServices, body: Any, key: str | None) -> tuple[JobRow, bool]:
    """Return the job, and whether this call made it; it is on disk when this returns.

    The same key with the same body returns the job that the first one made; with another body it is refused with 409.
    """
    digest = body_hash(body)
    prepared = await asyncio.to_thread(prepare, services, body, key, digest)
    if isinstance(prepared, JobRow):
        return prepared, False
    try:
        stored, made = await services.main.write(lambda session: store(session, prepared))
    except IntegrityError:
        # Another api process won the race for the key between our look and our write.
        winner = await services.main.read(lambda session: by_key(session, key, digest))
        if winner is None:
            raise
        return winner, False
    services.wake_outbox()
    return stored, made


def prepare(services: ApiServices, body: Any, key: str | None, digest: str) -> JobRow | Prepared:
    """Return what is to be stored, or the job that the key already made; everything slow happens here."""
    if key is not None:
        known = services.main.read_now(lambda session: by_key(session, key, digest))
        if known is not None:
            return known
    full = services.disks.full("database")
    if full is not None:
        # What is left is for pauses, cancels and the ends of jobs.
        raise DatabaseFull("no new job is taken on", shortage(full.volume))
    found = checked(services, body)
    uuid, now = new_job_id(), services.clock.now()
    row = JobRow(
        uuid=uuid,
        name=found.spec.name or f"{found.spec.algorithm} {uuid[:8]}",
        description=found.spec.description,
        algorithm=found.spec.algorithm,
        tags=list(found.spec.tags),
        config=found.config,
        depends_on=list(dependencies(found.spec)),
        created_at=now,
        idempotency_key=key,
        body_hash=digest,
        priority=found.spec.priority,
    )
    return Prepared(row, found, seal(services.keyring, uuid, found.secrets, now))


def store(session: Session, prepared: Prepared) -> tuple[JobRow, bool]:
    """Write the job, its dependencies, secrets and request. Raises TrainyardError 409 or 422."""
    row, found = prepared.row, prepared.checked
    known = by_key(session, row.idempotency_key, row.body_hash)
    if known is not None:
        return known, False
    needs = dependencies(found.spec)
    check_dependencies(session, found.spec, needs)
    # Straight into the table: the row has no need of a session that follows it.
    session.connection().execute(_INSERT, [{c: getattr(row, c) for c in JobRow.model_fields}])
    session.add_all([JobDependencyRow(job=row.uuid, needs=job) for job in needs])
    session.add_all(prepared.secrets)
    add_request(
        session,
        JobSubmitRequested(
            job=row.uuid,
            req_n=1,
            at=row.created_at,
            name=row.name,
            config=found.config,
            secret_names=tuple(sorted(found.secrets)),
            idempotency_key=row.idempotency_key,
            body_hash=row.body_hash,
        ),
    )
    session.flush()
    return row, True


def body_hash(body: Any) -> str:
    """Return the digest by which two bodies are the same: key order and blanks do not count."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def by_key(session: Session, key: str | None, digest: str) -> JobRow | None:
    """Return the job of an idempotency key. Raises TrainyardError 409 when it had another body, or was deleted."""
    if key is None:
        return None
    row = session.execute(
        select(JobRow).where(col(JobRow.idempotency_key) == key)
    ).scalar_one_or_none()
    if row is not None and row.body_hash != digest:
        raise conflict(
            "idempotency_mismatch",
            f"This Idempotency-Key already made job {row.uuid} from another body. Use a new key for a new job.",
            f"该 Idempotency-Key 已用另一请求体创建任务 {row.uuid}。新任务请使用新的键。",
        )
    if row is not None and row.deleted_at is not None:
        raise conflict(
            "idempotency_job_deleted",
            f"This Idempotency-Key made job {row.uuid}, which was deleted since. Use a new key to submit it again.",
            f"该 Idempotency-Key 创建的任务 {row.uuid} 已被删除。如需重新提交，请使用新的键。",
        )
    return row


def idempotency_key(header: str | None) -> str | None:
    """Return the key. Raises TrainyardError 422 when it is empty, too long or not printable ASCII."""
    if header is None:
        return None
    key = header.strip()
    if not key or len(key) > KEY_LONGEST or not (key.isascii() and key.isprintable()):
        raise invalid(
            [
                FieldProblem(
                    "Idempotency-Key",
                    None,
                    f"Idempotency-Key must be 1 to {KEY_LONGEST} printable ASCII characters; a UUID does well.",
                    f"Idempotency-Key 应为 1 到 {KEY_LONGEST} 个可打印 ASCII 字符，建议使用 UUID。",
                    f"1..{KEY_LONGEST} characters",
                )
            ]
        )
    return key


def check_dependencies(session: Session, spec: JobSpec, needs: tuple[str, ...]) -> None:
    """Refuse a job that could never start. Raises TrainyardError 422 (no such job) or 409 (it failed)."""
    if not needs:
        return
    rows = {
        row.uuid: row
        for row in session.execute(
            select(JobRow).where(col(JobRow.uuid).in_(needs), col(JobRow.deleted_at).is_(None))
        ).scalars()
    }
    missing = [job for job in needs if job not in rows]
    if missing:
        raise invalid([_missing(spec, job) for job in missing])
    pending = pending_actions(session, rows.values())
    for job in needs:
        row = rows[job]
        failed = row.status in {JobStatus.FAILED.value, JobStatus.CANCELLED.value}
        reopening = Action.RETRY in pending.get(job, set())
        if (failed and not reopening) or Action.DELETE in pending.get(job, set()):
            raise conflict(
                "dependency_failed",
                f"Job {job} ({row.name}) is {row.status}, so a job that needs it would never start. Retry that job first, or leave it out.",
                f"任务 {job}（{row.name}）的状态为 {row.status}，依赖它的任务无法启动。请先重试该任务，或去掉该依赖。",
            )
    _check_step(session, spec, rows)


def recent_hosts(services: ApiServices) -> list[KnownHost]:
    """Return the hosts that may take jobs, as of at most HOSTS_SECONDS ago."""
    now = services.clock.boot()
    seen = services.hosts_seen
    if seen is None or now - seen[0] > HOSTS_SECONDS:
        seen = services.hosts_seen = (now, services.main.read_now(known_hosts))
    return seen[1]


def known_hosts(session: Session) -> list[KnownHost]:
    """Return the hosts that may take jobs."""
    rows = session.execute(select(HostRow).where(col(HostRow.forgotten).is_(False))).scalars()
    return [_known(row) for row in rows]


def _known(row: HostRow) -> KnownHost:
    inventory = row.inventory or {}
    gpus = inventory.get("gpus") or []
    return KnownHost(
        row.id,
        row.label,
        inventory.get("hostname"),
        inventory.get("device"),
        max((int(gpu.get("memory_mib") or 0) for gpu in gpus), default=0),
        int(inventory.get("memory_mib") or 0),
    )


def _missing(spec: JobSpec, job: str) -> FieldProblem:
    field = "depends_on" if job in spec.depends_on else "model_path"
    return FieldProblem(
        field,
        job,
        f"{field} names job {job}, which does not exist or was deleted. Copy a uuid from GET /api/v1/jobs/.",
        f"{field} 引用的任务 {job} 不存在或已被删除，请从 GET /api/v1/jobs/ 复制 uuid。",
        None,
        "job_not_found",
    )


def _check_step(session: Session, spec: JobSpec, rows: dict[str, JobRow]) -> None:
    """Refuse `job:<uuid>@<step>` where that job has ended and has no such checkpoint."""
    source = parse_model_path(spec.model_path)
    if not isinstance(source, JobModel) or not isinstance(source.selector, int):
        return
    row = rows.get(source.job)
    if row is None or row.status != JobStatus.COMPLETED.value:
        return
    steps = session.execute(
        select(col(CheckpointRow.step))
        .where(col(CheckpointRow.job) == source.job, col(CheckpointRow.deleted).is_(False))
        .order_by(col(CheckpointRow.step))
    ).scalars()
    there = list(steps)
    if source.selector not in there:
        shown = ", ".join(str(step) for step in there[-20:]) or "-"
        raise invalid(
            [
                FieldProblem(
                    "model_path",
                    spec.model_path,
                    f"Job {source.job} has no checkpoint at step {source.selector}; it has {shown}. Use one of them, @best or @last.",
                    f"任务 {source.job} 没有第 {source.selector} 步的检查点，现有：{shown}。请选用其一，或使用 @best、@last。",
                    there[-100:],
                    "checkpoint_not_found",
                )
            ]
        )
