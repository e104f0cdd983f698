"""Hosts: shown from the read model; drained and forgotten by request; joined by a one-time code."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from datetime import datetime, timedelta

from sqlalchemy import delete, or_, select
from sqlmodel import Session, col

from services.api.db.tables import HostRow, JobRow, JoinCodeRow
from services.api.deps import ApiServices
from services.api.hosts.schemas import HostJob, HostRead, JoinBody, JoinReply
from services.api.outbox import add_request
from services.api.settings import JOIN_CODE_HOURS
from shared.bus.credentials import add_host_key, remove_host_key
from shared.bus.embedded import reload_permissions
from shared.bus.keys import broker_url
from shared.bus.permissions import inbox
from shared.bus.port import BusError
from shared.bus.users import BrokerConfigInvalid
from shared.errors import (
    FieldProblem,
    TrainyardError,
    conflict,
    invalid,
    not_found,
    unavailable,
)
from shared.events.requests import HostDrainRequested, HostForgetRequested
from shared.ids import new_host_id
from shared.log import logger

LOG = logger("api.hosts")

_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
"""Without 0, 1, I and O, which people mistake for each other; 32 letters, 5 bits each."""
_GROUPS, _LETTERS = 4, 5


async def list_hosts(services: ApiServices) -> list[HostRead]:
    """Return every host that was not forgotten, by label."""

    def work(session: Session) -> list[HostRead]:
        rows = session.execute(
            select(HostRow)
            .where(col(HostRow.forgotten).is_(False))
            .order_by(col(HostRow.label), col(HostRow.id))
        ).scalars()
        return _read(session, list(rows))

    return await services.main.read(work)


async def read_host(services: ApiServices, key: str) -> HostRead:
    """Return one host by id or label. Raises TrainyardError 404."""
    return await services.main.read(lambda session: _read(session, [find_host(session, key)])[0])


def find_host(session: Session, key: str, *, lock: bool = False) -> HostRow:
    """Return a host by id, else by a label that only one host has. Raises TrainyardError 404 or 409."""
    statement = select(HostRow).where(
        or_(col(HostRow.id) == key, col(HostRow.label) == key), col(HostRow.forgotten).is_(False)
    )
    rows = list(session.execute(statement.with_for_update() if lock else statement).scalars())
    exact = [row for row in rows if row.id == key]
    if not rows:
        raise not_found("host", "主机", key[:100])
    if len(rows) > 1 and not exact:
        ids = ", ".join(sorted(row.id for row in rows))
        raise conflict(
            "ambiguous_host",
            f"Several hosts are called {key[:100]!r}; use an id: {ids}.",
            f"有多台主机名为 {key[:100]!r}，请使用 id：{ids}。",
        )
    found: HostRow = exact[0] if exact else rows[0]
    return found


async def drain(services: ApiServices, key: str, *, drained: bool, stop_jobs: bool) -> HostRead:
    """Ask the scheduler to start nothing new there, or to do so again. Raises TrainyardError 404."""
    now = services.clock.now()

    def work(session: Session) -> HostRead:
        row = find_host(session, key, lock=True)
        row.req_n += 1
        add_request(
            session,
            HostDrainRequested(
                host=row.id, req_n=row.req_n, at=now, drained=drained, stop_jobs=stop_jobs
            ),
        )
        # Shown at once; the scheduler's next word about this host confirms or corrects it.
        row.drained = drained
        session.flush()
        return _read(session, [row])[0]

    found = await services.main.write(work)
    services.wake_outbox()
    return found


async def forget(services: ApiServices, key: str) -> None:
    """Remove a host that will not come back, and its key. Raises TrainyardError 404, or 409 while it is in use."""
    now = services.clock.now()

    def work(session: Session) -> str:
        row = find_host(session, key, lock=True)
        if row.runs:
            raise conflict(
                "host_in_use",
                f"{row.label} runs {', '.join(row.runs)}. Drain it and wait, or declare those jobs lost.",
                f"{row.label} 上正在运行 {', '.join(row.runs)}。请先排空主机并等待，或将这些任务判定为丢失。",
            )
        if row.online:
            raise conflict(
                "host_online",
                f"The agent of {row.label} is online. Stop it first, then forget the host.",
                f"{row.label} 的 agent 仍在线。请先停止它，再移除主机。",
            )
        row.req_n += 1
        add_request(session, HostForgetRequested(host=row.id, req_n=row.req_n, at=now))
        row.forgotten = True
        session.flush()
        return row.id

    host = await services.main.write(work)
    services.wake_outbox()
    await asyncio.to_thread(remove_host_key, services.settings.home, host)
    await _reload(services)


async def make_code(services: ApiServices) -> tuple[str, datetime]:
    """Return a new one-time code and when it expires; only its hash is stored."""
    groups = ("".join(secrets.choice(_ALPHABET) for _ in range(_LETTERS)) for _ in range(_GROUPS))
    code = "-".join(groups)
    now = services.clock.now()
    expires = now + timedelta(hours=JOIN_CODE_HOURS)
    row = JoinCodeRow(code_hash=code_hash(code), created_at=now, expires_at=expires, used_at=None)
    await services.main.write(lambda session: session.add(row))
    return code, expires


async def join(services: ApiServices, body: JoinBody) -> JoinReply:
    """Let a host in: its code is spent, its key known to the broker. Raises TrainyardError 403 or 503."""
    now = services.clock.now()
    host = new_host_id()

    def work(session: Session) -> None:
        row = session.get(JoinCodeRow, code_hash(body.code), with_for_update=True)
        if row is None or row.used_at is not None or row.expires_at <= now:
            raise _code_refused()
        row.used_at, row.host = now, host
        session.add(
            HostRow(
                id=host,
                label=body.label,
                public_key=body.public_key,
                joined_at=now,
                last_seen=None,
                inventory=None,
                runs=[],
            )
        )
        session.flush()

    await services.main.write(work)
    home = services.settings.home
    try:
        url = services.settings.nats_url or broker_url(home)
        await asyncio.to_thread(add_host_key, home, host, body.public_key)
    except (ValueError, BrokerConfigInvalid, BusError, OSError) as error:
        await services.main.write(lambda session: _undo_join(session, body.code, host))
        if isinstance(error, (ValueError, BrokerConfigInvalid)):
            raise _key_refused() from error
        raise unavailable(
            "broker_not_managed",
            "The broker's user file cannot be written from here. Share TRAINYARD_HOME with the broker, then try again.",
            "无法从此处写入消息代理的用户文件。请与消息代理共享 TRAINYARD_HOME 后重试。",
        ) from error
    await _reload(services)
    return JoinReply(
        host_id=host,
        nats_url=url,
        inbox_prefix=inbox(host),
        restrict_paths=not services.settings.is_loopback,
    )


def code_hash(code: str) -> str:
    """Return what is stored of a code; case and hyphens do not matter. 100 random bits need no slow hash."""
    plain = code.replace("-", "").strip().upper()
    return hashlib.sha256(plain.encode()).hexdigest()


async def _reload(services: ApiServices) -> None:
    """Let the broker take the new users; one that is away reads them when it starts."""
    try:
        await reload_permissions(services.settings.home, services.settings.nats_url)
    except BusError as error:
        LOG.warning("broker_not_reloaded", error=str(error)[:200])


def _undo_join(session: Session, code: str, host: str) -> None:
    row = session.get(JoinCodeRow, code_hash(code))
    if row is not None:
        row.used_at = row.host = None
    session.execute(delete(HostRow).where(col(HostRow.id) == host))


def _key_refused() -> TrainyardError:
    return invalid(
        [
            FieldProblem(
                "public_key",
                None,
                "public_key is not the public nkey of a user (U and 55 capitals or digits); the code is still good.",
                "public_key 不是有效的用户 nkey 公钥（U 加 55 个大写字母或数字）；加入码仍然有效。",
                "U…",
                "key_invalid",
            )
        ]
    )


def _code_refused() -> TrainyardError:
    return TrainyardError(
        "join_code_invalid",
        403,
        "Code refused",
        "加入码无效",
        f"The code is wrong, spent, or older than {JOIN_CODE_HOURS} h. Make a new one with POST /api/v1/hosts/join-codes.",
        f"加入码错误、已使用或已超过 {JOIN_CODE_HOURS} 小时。请用 POST /api/v1/hosts/join-codes 重新生成。",
    )


def _read(session: Session, rows: list[HostRow]) -> list[HostRead]:
    wanted = {uuid for row in rows for uuid in row.runs}
    jobs = {
        job.uuid: job
        for job in session.execute(select(JobRow).where(col(JobRow.uuid).in_(wanted))).scalars()
    }
    return [_shown(row, jobs) for row in rows]


def _shown(row: HostRow, jobs: dict[str, JobRow]) -> HostRead:
    inventory = row.inventory or {}
    return HostRead(
        id=row.id,
        label=row.label,
        online=row.online,
        drained=row.drained,
        last_seen=row.last_seen,
        joined_at=row.joined_at,
        agent_version=inventory.get("agent_version"),
        device=inventory.get("device"),
        gpus=list(inventory.get("gpus") or []),
        jobs=[
            HostJob(
                uuid=uuid,
                name=jobs[uuid].name if uuid in jobs else None,
                status=jobs[uuid].status if uuid in jobs else None,
            )
            for uuid in row.runs
        ],
        inventory=row.inventory,
    )
