"""Who may talk to the service: Host and Origin against foreign pages, the bearer token, and the size of a body."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.reward.problems import problem_response
from services.reward.settings import RewardSettings
from shared.errors import TrainyardError
from shared.rewards.scores import MAX_BODY_BYTES

OPEN_PATHS: Final = frozenset({"/livez", "/readyz", "/health/live", "/health/ready"})


class Gate:
    """Refuses what a foreign page, a stranger or an endless body could have sent."""

    def __init__(self, app: ASGIApp, settings: RewardSettings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with a problem."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(
            {k: v.decode("latin-1") for k, v in scope["headers"]}, scope["path"]
        )
        if refusal is not None:
            await problem_response(refusal, scope)(scope, receive, send)
            return
        await self.app(scope, _bounded(receive), send)

    def _refusal(self, headers: dict[bytes, str], path: str) -> TrainyardError | None:
        host = headers.get(b"host", "")
        if not self._host_allowed(host):
            return _refused("host_not_allowed", 400, f"This service is not known as {host[:100]!r}. Add the name to TRAINYARD_ALLOWED_HOSTS.", f"本服务不以 {host[:100]!r} 为名。请将该名称加入 TRAINYARD_ALLOWED_HOSTS。")  # fmt: skip
        if b"origin" in headers and urlsplit(headers[b"origin"]).netloc.lower() != host.lower():
            return _refused("origin_not_allowed", 403, "Pages of another site may not use this service.", "其他站点的页面不能使用本服务。")  # fmt: skip
        length = headers.get(b"content-length", "0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            return too_large()
        token = self.settings.api_token
        if not token or path in OPEN_PATHS or _token_matches(token, headers):
            return None
        refused = _refused("auth_required", 401, "A token is needed: send `Authorization: Bearer <TRAINYARD_API_TOKEN>`.", "需要令牌：请发送 `Authorization: Bearer <TRAINYARD_API_TOKEN>`。")  # fmt: skip
        refused.headers["WWW-Authenticate"] = "Bearer"
        return refused

    def _host_allowed(self, host: str) -> bool:
        """An address cannot be rebound by DNS, a name can."""
        name = urlsplit(f"//{host}").hostname if host else None
        if name is None:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self.settings.host_names
        return True


def too_large() -> TrainyardError:
    """Return the 413."""
    limit = MAX_BODY_BYTES // 1024**2
    return _refused("body_too_large", 413, f"The body is larger than {limit} MiB; send smaller batches.", f"请求体超过 {limit} MiB，请分批发送。")  # fmt: skip


def _bounded(receive: Receive) -> Receive:
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MAX_BODY_BYTES:
            raise too_large()
        return message

    return bounded


def _token_matches(expected: str, headers: dict[bytes, str]) -> bool:
    scheme, _, given = headers.get(b"authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    digests = (
        hashlib.sha256(t.encode(errors="replace")).digest() for t in (expected, given.strip())
    )
    return hmac.compare_digest(*digests)


def _refused(code: str, status: int, en: str, zh: str) -> TrainyardError:
    return TrainyardError(code, status, "Refused", "已拒绝", en, zh)
