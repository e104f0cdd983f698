"""`WS /api/v1/monitoring/{job_uuid}/live`: a snapshot or what was missed, then frames as they are committed.

Host, Origin and token are checked before the connection is accepted (services.api.auth.Gate). Closing codes: 1000 the
job has ended, 1013 the client does not keep up, 4400 `since` is not a frame number, 4404 no such job, 4416 `since`
lies after the newest frame (the counter was never there: connect without it).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import orjson
from fastapi import APIRouter
from sqlmodel import Session, col, select
from starlette.websockets import WebSocket, WebSocketDisconnect

from services.api.deps import ApiServices, lang_of, services_of
from services.api.hosts.models import HostRow
from services.api.jobs.models import JobRow
from services.api.monitoring.feed import Feed, Head, read_head, shown_state
from services.api.monitoring.hub import Subscription
from services.api.monitoring.routes import ReadJob
from services.api.telemetry.frames import Frame, moment, status_data
from services.api.telemetry.latest import read_latest
from services.api.telemetry.windows import LogQuery, checkpoints, logs
from shared.db import Database
from shared.errors import TrainyardError
from shared.jobs.lifecycle import JobState
from shared.jobs.reasons import Lang

BEHIND_SECONDS = 30.0
CLOSE_SECONDS = 2.0
SNAPSHOT_LINES = 100
PROTOCOL = "trainyard.v1"
REASON_BYTES = 123
"""What a WebSocket close frame can carry."""


class _Refused(Exception):
    """Close with a code and a sentence."""

    def __init__(self, code: int, en: str, zh: str) -> None:
        super().__init__(en)
        self.code = code
        self.en = en
        self.zh = zh


class _TooSlow(Exception):
    """The client took longer than BEHIND_SECONDS for what is meant for it."""


def live_routes(read_job: ReadJob) -> APIRouter:
    """Return the WebSocket route."""
    router = APIRouter(tags=["monitoring"])

    @router.websocket("/api/v1/monitoring/{job_uuid}/live")
    async def live(socket: WebSocket, job_uuid: str) -> None:
        services, lang = services_of(socket), lang_of(socket)
        with contextlib.suppress(ValueError):
            job_uuid = str(UUID(job_uuid))
        await socket.accept(subprotocol=_subprotocol(socket))
        subscription = services.hub.subscribe(job_uuid)
        client = _Client(socket, services, subscription, lang)
        try:
            await client.serve(job_uuid, read_job)
        except _Refused as refused:
            await client.close(refused.code, refused.zh if lang == "zh" else refused.en)
        except _TooSlow:
            await client.close(1013, "The client is too slow; connect again with ?since=.")
        except (WebSocketDisconnect, RuntimeError):
            # Starlette raises RuntimeError for a send after the peer has gone.
            return
        finally:
            services.hub.unsubscribe(job_uuid, subscription)

    return router


class _Client:
    """One connection; its own task and queue, so that it can only delay itself."""

    def __init__(
        self, socket: WebSocket, services: ApiServices, subscription: Subscription, lang: Lang
    ) -> None:
        self._socket = socket
        self._services = services
        self._subscription = subscription
        self._lang = lang
        self._labels: dict[str, str] = {}
        self._behind_since: float | None = None

    async def serve(self, job: str, read_job: ReadJob) -> None:
        """Send until the job has ended or the client leaves."""
        since = _since(self._socket.query_params.get("since"))
        if since is None:
            snapshot = await self._snapshot(job, read_job)
            since = snapshot["seq"]
            first: str | None = orjson.dumps(snapshot).decode()
        else:
            await self._job(job, read_job)
            head = await self._services.telemetry.read(lambda s: read_head(s, job))
            _check_since(since, head)
            first = None
        feed = Feed(self._services.telemetry, self._subscription, job, since)
        sending = asyncio.create_task(self._send_all(first, feed.frames()))
        hearing = asyncio.create_task(self._until_gone())
        try:
            await asyncio.wait({sending, hearing}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
                await self.close(1000, "")
        finally:
            for task in (sending, hearing):
                task.cancel()
            await asyncio.gather(sending, hearing, return_exceptions=True)

    async def close(self, code: int, reason: str) -> None:
        """Close with a sentence; do not wait long for a peer that does not read."""
        text = reason.encode()[:REASON_BYTES].decode(errors="ignore")
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._socket.close(code, text)

    async def _send_all(self, first: str | None, frames: AsyncIterator[Frame]) -> None:
        if first is not None:
            await self._send(first)
        async for frame in frames:
            await self._send(await self._text(frame))
            self._check_behind()

    async def _send(self, text: str) -> None:
        try:
            async with asyncio.timeout(BEHIND_SECONDS):
                await self._socket.send_text(text)
        except TimeoutError:
            raise _TooSlow from None

    def _check_behind(self) -> None:
        """Raise _TooSlow when the queue has not been emptied for BEHIND_SECONDS after it overflowed."""
        now = asyncio.get_running_loop().time()
        if not self._subscription.overflowed:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        elif now - self._behind_since > BEHIND_SECONDS:
            raise _TooSlow

    async def _until_gone(self) -> None:
        while (await self._socket.receive())["type"] != "websocket.disconnect":
            continue

    async def _text(self, frame: Frame) -> str:
        host = frame.data.get("host") if frame.type == "status" else None
        if host is None:
            return frame.text(self._lang)
        if host not in self._labels:
            self._labels = await _host_labels(self._services.main)
        shown = frame.as_json(self._lang)
        shown["data"]["host"] = self._labels.get(host, host)
        return orjson.dumps(shown).decode()

    async def _job(self, job: str, read_job: ReadJob) -> dict[str, Any]:
        try:
            return await read_job(job, self._lang)
        except TrainyardError as error:
            raise _Refused(4404, error.detail_en, error.detail_zh) from None

    async def _snapshot(self, job: str, read_job: ReadJob) -> dict[str, Any]:
        now = self._services.clock.now().timestamp()

        def work(session: Session) -> dict[str, Any]:
            head = read_head(session, job)
            if head is None:
                return {"seq": 0, "logs": [], "checkpoints": [], "latest": None}
            return {
                "seq": head.seq,
                "logs": logs(
                    session, head.job_id, LogQuery(before=head.seq + 1, limit=SNAPSHOT_LINES)
                ),
                "checkpoints": checkpoints(session, head.job_id),
                "latest": read_latest(session, [job]).get(job),
                "state": shown_state(session, job),
            }

        found = await self._services.telemetry.read(work)
        # After the frame number: what changes in between is in the job, and comes as a frame once more.
        projected = await self._services.main.read(lambda s: _projected(s, job))
        shown = await self._job(job, read_job)
        state: JobState | None = found.pop("state", None)
        if state is not None and state.job_n > projected and not state.deleted:
            # The frames were faster than the job's row, and this status is not sent again.
            shown |= {k: v for k, v in status_data(state, self._lang).items() if k in shown}
            if state.host is not None:
                shown["host"] = (await _host_labels(self._services.main)).get(
                    state.host, state.host
                )
        latest = found.pop("latest")
        data = {
            "job": shown,
            "latest_metrics": latest.latest_metrics if latest else None,
            "progress": latest.progress if latest else None,
            "phase": latest.phase if latest else None,
            "logs": found["logs"],
            "checkpoints": found["checkpoints"],
        }
        return {"seq": found["seq"], "type": "snapshot", "time": moment(now), "data": data}


def _since(text: str | None) -> int | None:
    """Read `since`. Raises _Refused for what is no frame number."""
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 16:
        return int(text)
    raise _Refused(
        4400,
        "since must be a frame number, 0 or more. Leave it out to begin with a snapshot.",
        "since 应为不小于 0 的帧序号；省略则从快照开始。",
    )


def _check_since(since: int, head: Head | None) -> None:
    newest = head.seq if head else 0
    if since > newest:
        raise _Refused(
            4416,
            f"since={since} lies after the newest frame {newest}. Connect again without since.",
            f"since={since} 大于最新帧 {newest}，请去掉 since 重新连接。",
        )


def _subprotocol(socket: WebSocket) -> str | None:
    """Answer one of the offered protocols, as browsers demand; the token's only if nothing else is offered."""
    offered: list[str] = socket.scope.get("subprotocols", [])
    if PROTOCOL in offered:
        return PROTOCOL
    return next((name for name in offered if name.startswith("bearer.")), None)


def _projected(session: Session, job: str) -> int:
    """Return the number of the last job.* event in the job's row."""
    row = session.get(JobRow, job)
    return row.job_n if row else 0


async def _host_labels(main: Database) -> dict[str, str]:
    def work(session: Session) -> dict[str, str]:
        rows = session.exec(select(col(HostRow.id), col(HostRow.label))).all()
        return {host: label for host, label in rows}  # noqa: C416 - rows are not tuples to mypy

    return await main.read(work)
