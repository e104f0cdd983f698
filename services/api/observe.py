"""What Prometheus reads at `/metrics`, and the outermost layer: request id, timing, security headers, no stack trace."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.problems import internal_error, problem_response
from shared.log import logger

LOG = logger("api.http")
REQUEST_ID = "trainyard.request_id"
_OWN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
_POLICY = (
    b"default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    b"connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)


class ApiMetrics:
    """One registry an app, so that several apps can live in one process."""

    def __init__(self) -> None:
        """Declare every metric."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "trainyard_http_requests_total",
            "HTTP requests by route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "trainyard_http_request_seconds",
            "Seconds until the answer began",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.outbox = Gauge(
            "trainyard_outbox_depth",
            "Requests not yet confirmed by the broker",
            registry=self.registry,
        )
        self.jobs = Gauge("trainyard_jobs", "Jobs by status", ["status"], registry=self.registry)
        self.lag = Gauge(
            "trainyard_projection_lag_messages",
            "Messages of a stream not yet applied",
            ["stream"],
            registry=self.registry,
        )
        self.connected = Gauge(
            "trainyard_bus_connected", "1 while the broker is reachable", registry=self.registry
        )
        self.secrets = Counter(
            "trainyard_secret_requests_total",
            "Secret requests of hosts by verdict",
            ["verdict"],
            registry=self.registry,
        )


class Observe:
    """Outermost ASGI layer."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        """Wrap `app`."""
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a defect of ours is logged and answered with a 500 that names the request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope[REQUEST_ID] = _request_id(scope["headers"])
        began = time.perf_counter()
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _count(self.metrics, scope, status, time.perf_counter() - began)
                message = {**message, "headers": _with_headers(message["headers"], scope)}
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=scope[REQUEST_ID]):
            try:
                await self.app(scope, receive, observed)
            except Exception:
                LOG.exception("request_failed", method=scope["method"], path=scope["path"][:200])
                if status:
                    raise
                await problem_response(internal_error(), scope)(scope, receive, observed)


def _count(metrics: ApiMetrics, scope: Scope, status: int, seconds: float) -> None:
    route = getattr(scope.get("route"), "path", "-")
    metrics.requests.labels(scope["method"], route, str(status)).inc()
    metrics.seconds.labels(scope["method"], route).observe(seconds)


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    given = next((v for k, v in headers if k == b"x-request-id"), b"").decode("latin-1")
    return given if _OWN_ID.fullmatch(given) else uuid.uuid4().hex


def _with_headers(
    headers: Iterable[tuple[bytes, bytes]], scope: Scope
) -> list[tuple[bytes, bytes]]:
    path: str = scope["path"]
    given = list(headers)
    extra = [*_SECURITY, (b"content-security-policy", _POLICY)]
    extra.append((b"x-request-id", scope[REQUEST_ID].encode()))
    if path.startswith("/api/") and not any(k.lower() == b"cache-control" for k, _ in given):
        extra.append((b"cache-control", b"no-store"))
    return given + extra
