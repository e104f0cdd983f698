"""What a body may be before any route sees it: size, time, content type, and strict JSON."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.problems import problem_response
from services.api.settings import BODY_LIMIT, BODY_SECONDS
from services.api.strict_json import parse
from shared.errors import TrainyardError

PARSED = "trainyard.json"
"""Where a route finds the parsed body in the scope."""
_UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class BodyGate:
    """Reads the body of unsafe requests once, bounded in bytes and seconds, and refuses what is not JSON."""

    def __init__(
        self, app: ASGIApp, limit: int = BODY_LIMIT, seconds: float = BODY_SECONDS
    ) -> None:
        """Wrap `app`."""
        self.app = app
        self.limit = limit
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body read, or answer with a problem."""
        if scope["type"] == "http" and _holds_nul(scope):
            await problem_response(_nul(), scope)(scope, receive, send)
            return
        if scope["type"] != "http" or scope["method"] not in _UNSAFE:
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(_headers(scope), receive)
            if body:
                scope[PARSED] = self._parsed(_headers(scope), body)
        except TrainyardError as error:
            await problem_response(error, scope)(scope, receive, send)
            return
        if body is None:
            return
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """Return the body, or None when the client went away."""
        told = headers.get(b"content-length", b"0")
        if told.isdigit() and int(told) > self.limit:
            raise _too_large(self.limit)
        parts = bytearray()
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts += message.get("body", b"")
                    if len(parts) > self.limit:
                        raise _too_large(self.limit)
                    if not message.get("more_body", False):
                        return bytes(parts)
        except TimeoutError:
            raise _problem(
                408,
                "body_too_slow",
                f"The body did not arrive within {self.seconds:g} seconds. Send it again.",
                f"请求体未在 {self.seconds:g} 秒内到达，请重新发送。",
            ) from None

    def _parsed(self, headers: dict[bytes, bytes], body: bytes) -> Any:
        if headers.get(b"content-encoding", b"identity").strip().lower() not in {b"", b"identity"}:
            raise _problem(
                415,
                "encoding_unsupported",
                "Compressed bodies are not accepted. Send plain JSON.",
                "不接受压缩的请求体，请发送普通 JSON。",
            )
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            shown = kind[:80].decode("ascii", "replace") or "-"
            raise _problem(
                415,
                "content_type",
                f"The body is {shown}; set Content-Type: application/json.",
                f"请求体类型为 {shown}，请设置 Content-Type: application/json。",
            )
        return parse(body)


def _headers(scope: Scope) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _problem(status: int, code: str, en: str, zh: str) -> TrainyardError:
    return TrainyardError(
        code, status, "Body refused", "请求体被拒绝", en, zh, headers={"Connection": "close"}
    )


def _too_large(limit: int) -> TrainyardError:
    return _problem(
        413,
        "body_too_large",
        f"The body is larger than {limit // 1024} KiB. Put large data into a file and name its path.",
        f"请求体超过 {limit // 1024} KiB。请将大量数据放入文件并填写其路径。",
    )


def _holds_nul(scope: Scope) -> bool:
    return (
        b"%00" in scope["query_string"] or b"\0" in scope["query_string"] or "\0" in scope["path"]
    )


def _nul() -> TrainyardError:
    return TrainyardError(
        "invalid_characters",
        422,
        "Invalid input",
        "输入有误",
        "The address holds a NUL character; remove it.",
        "地址中含有 NUL 字符，请删除。",
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
