"""Who may talk to the api: Host and Origin checks against foreign pages, and the bearer token.

A browser page of another site can send requests to a loopback address, so these checks matter without a token too.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from services.api.problems import problem_response
from services.api.settings import ApiSettings
from shared.errors import TrainyardError

OPEN_PATHS = frozenset(
    {
        "/livez",
        "/readyz",
        "/docs",
        "/docs/assets/start.js",
        "/docs/assets/swagger-ui-bundle.js",
        "/docs/assets/swagger-ui.css",
        "/openapi.json",
    }
)
"""Health, and the documentation: a browser opens it without a header, and it holds no data. Its calls carry the token."""
JOIN_PATH = "/api/v1/hosts/join"
"""A joining host has no token yet: its one-time code is checked by the route."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_BEARER_PROTOCOL = "bearer."


def host_allowed(settings: ApiSettings, host: str) -> bool:
    """Tell whether a Host header names this api; an address cannot be rebound by DNS, a name can."""
    name = urlsplit(f"//{host}").hostname if host else None
    if name is None:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() in settings.host_names
    return True


def origin_allowed(settings: ApiSettings, origin: str | None, host: str) -> bool:
    """Tell whether a page of `origin` may use the api that was addressed as `host`; no origin is no browser."""
    if origin is None:
        return True
    if origin.rstrip("/").lower() in settings.origins:
        return True
    parts = urlsplit(origin)
    return parts.scheme in {"http", "https"} and parts.netloc.lower() == host.lower()


def token_matches(expected: str, given: str | None) -> bool:
    """Compare in constant time; hashing first makes the time independent of the length."""
    ours = hashlib.sha256(expected.encode()).digest()
    theirs = hashlib.sha256((given or "").encode(errors="replace")).digest()
    return hmac.compare_digest(ours, theirs) and given is not None


class Gate:
    """Refuses requests that a foreign page or a stranger could have sent; http and websocket alike."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        """Wrap `app`."""
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with a problem."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
            await problem_response(refusal, scope)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.code})

    def _refusal(self, scope: Scope) -> TrainyardError | None:
        headers = {k: v.decode("latin-1") for k, v in scope["headers"]}
        host = headers.get(b"host", "")
        if not host_allowed(self.settings, host):
            return _host_refused(host)
        origin = headers.get(b"origin")
        unsafe = scope["type"] == "websocket" or scope["method"] not in _SAFE
        if unsafe and not origin_allowed(self.settings, origin, host):
            return _origin_refused(origin or "")
        if unsafe and origin is None and headers.get(b"sec-fetch-site") == "cross-site":
            return _origin_refused("-")
        expected = self.settings.api_token
        if not expected or scope["path"] in OPEN_PATHS or scope["path"] == JOIN_PATH:
            return None
        if scope.get("method") == "OPTIONS":
            return None
        return None if token_matches(expected, _given_token(headers)) else _token_refused(headers)


def _given_token(headers: dict[bytes, str]) -> str | None:
    scheme, _, token = headers.get(b"authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    # A browser cannot set headers on a WebSocket; the subprotocol never lands in an access log as a query would.
    for protocol in headers.get(b"sec-websocket-protocol", "").split(","):
        if protocol.strip().startswith(_BEARER_PROTOCOL):
            return protocol.strip().removeprefix(_BEARER_PROTOCOL)
    return None


def _token_refused(headers: dict[bytes, str]) -> TrainyardError:
    given = b"authorization" in headers
    code = "token_invalid" if given else "auth_required"
    return TrainyardError(
        code,
        401,
        "Not authorised",
        "未授权",
        "The token is not the right one." * given
        + "A token is needed: send `Authorization: Bearer <TRAINYARD_API_TOKEN>`." * (not given),
        "令牌不正确。" * given
        + "需要令牌：请发送 `Authorization: Bearer <TRAINYARD_API_TOKEN>`。" * (not given),
        headers={"WWW-Authenticate": "Bearer"},
    )


def _host_refused(host: str) -> TrainyardError:
    name = host[:100].encode("ascii", "backslashreplace").decode()
    return TrainyardError(
        "host_not_allowed",
        400,
        "Host not allowed",
        "不允许的 Host",
        f"This api is not known as {name!r}. Add the name to TRAINYARD_ALLOWED_HOSTS.",
        f"本 api 不以 {name!r} 为名。请将该名称加入 TRAINYARD_ALLOWED_HOSTS。",
    )


def _origin_refused(origin: str) -> TrainyardError:
    name = origin[:100].encode("ascii", "backslashreplace").decode()
    return TrainyardError(
        "origin_not_allowed",
        403,
        "Origin not allowed",
        "不允许的来源",
        f"Pages of {name} may not use this api. Add the origin to TRAINYARD_ALLOWED_ORIGINS.",
        f"来自 {name} 的页面不能使用本 api。请将该来源加入 TRAINYARD_ALLOWED_ORIGINS。",
    )
