"""The live feed against hostile clients: refused before it is opened, closed with a reason, and nobody else disturbed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
import time
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.conftest import PATIENCE, eventually
from tests.hostile.target import Target

pytestmark = [pytest.mark.e2e]
GROWTH_MIB = 200
SECONDS = 30.0


def live(target: Target, job: str, query: str = "", **options: Any) -> ClientConnection:
    address = target.url.replace("http://", "ws://")
    options = {"open_timeout": SECONDS, "close_timeout": 2, "proxy": None} | options
    return connect(f"{address}/api/v1/monitoring/{job}/live{query}", **options)


def still_serves(target: Target) -> None:
    with live(target, target.waiting) as socket_:
        assert json.loads(socket_.recv(timeout=SECONDS))["type"] == "snapshot"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("another page", {"origin": "https://evil.example"}),
        ("no page", {"origin": "null"}),
        ("another port", {"origin": "http://127.0.0.1:1"}),
        ("a page that ends like ours", {"origin": "http://evil-127.0.0.1"}),
    ],
)
def test_a_foreign_origin_gets_a_problem_and_no_socket(
    unharmed: Target, name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidStatus) as refused, live(unharmed, unharmed.waiting, **options):
        pass
    reply = refused.value.response
    assert reply.status_code == 403, name
    assert json.loads(reply.body or b"")["code"] == "origin_not_allowed"


def test_a_foreign_host_gets_a_problem_and_no_socket(unharmed: Target) -> None:
    host, port = unharmed.http.base_url.host, unharmed.http.base_url.port
    with socket.create_connection((host, port or 80), timeout=SECONDS) as raw:
        key = base64.b64encode(os.urandom(16)).decode()
        raw.sendall(
            f"GET /api/v1/monitoring/{unharmed.waiting}/live HTTP/1.1\r\nHost: evil.example\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        answer = raw.recv(65_536).decode()
    assert answer.startswith("HTTP/1.1 400")
    assert "host_not_allowed" in answer


@pytest.mark.parametrize(
    ("job", "query", "code"),
    [
        ("ended", "?since=-1", 4400),
        ("ended", "?since=x", 4400),
        ("ended", "?since=", 4400),
        ("ended", "?since=1e3", 4400),
        ("ended", "?since=" + "9" * 5000, 4400),
        ("ended", "?since=%D9%A3", 4400),
        ("ended", "?since=9007199254740991", 4416),
        ("waiting", "?since=999", 4416),
        ("00000000-0000-7000-8000-000000000000", "", 4404),
        ("not-a-uuid", "", 4404),
        ("'%20OR%201=1", "?since=0", 4404),
        ("x" * 3000, "", 4404),
    ],
)
def test_a_wrong_place_to_begin_is_closed_with_a_sentence(
    unharmed: Target, job: str, query: str, code: int
) -> None:
    uuid = {"ended": unharmed.ended, "waiting": unharmed.waiting}.get(job, job)
    for language, word in (("en", " "), ("zh", "")):
        headers = {"Accept-Language": language}
        with live(unharmed, uuid, query, additional_headers=headers) as socket_:
            with pytest.raises(ConnectionClosed) as closed:
                socket_.recv(timeout=SECONDS)
            told = closed.value.rcvd
            assert told is not None
            assert told.code == code
            assert word in told.reason
            assert told.reason.isascii() is (language == "en") or "…" in told.reason


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "hello"),
        ("JSON", '{"type": "subscribe", "job": "*"}'),
        ("bytes", b"\0\xff" * 1000),
        ("nothing", ""),
        ("deep", "[" * 50_000),
    ],
)
def test_what_a_client_says_changes_nothing(
    unharmed: Target, name: str, message: str | bytes
) -> None:
    with live(unharmed, unharmed.waiting) as socket_:
        first = json.loads(socket_.recv(timeout=SECONDS))
        assert first["type"] == "snapshot", name
        with contextlib.suppress(ConnectionClosed):
            for _ in range(20):
                socket_.send(message)
    still_serves(unharmed)


def test_a_frame_of_16_mib_closes_only_its_connection(unharmed: Target) -> None:
    before = unharmed.api_mib()
    with live(unharmed, unharmed.waiting) as other:
        other.recv(timeout=SECONDS)
        with live(unharmed, unharmed.waiting, max_size=None) as socket_:
            socket_.recv(timeout=SECONDS)
            with contextlib.suppress(ConnectionClosed):
                socket_.send("x" * (16 << 20))
            with pytest.raises(ConnectionClosed) as closed:
                socket_.recv(timeout=SECONDS)
            assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
        assert other.ping().wait(SECONDS)
    assert unharmed.api_mib() - before < GROWTH_MIB


def test_a_flood_of_frames_slows_nobody(unharmed: Target) -> None:
    before = unharmed.api_mib()
    with live(unharmed, unharmed.waiting) as socket_:
        socket_.recv(timeout=SECONDS)
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            for _ in range(10_000):
                socket_.send("x")
        began = time.monotonic()
        still_serves(unharmed)
        assert unharmed.http.get("/livez").status_code == 200
        assert time.monotonic() - began < 5 * PATIENCE
    assert unharmed.api_mib() - before < GROWTH_MIB


async def test_many_connections_that_never_read_are_borne(unharmed: Target) -> None:
    before = unharmed.api_mib()
    host, port = unharmed.http.base_url.host, unharmed.http.base_url.port
    key = base64.b64encode(os.urandom(16)).decode()
    request = (
        f"GET /api/v1/monitoring/{unharmed.waiting}/live HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    open_ = [socket.create_connection((host, port or 80), timeout=SECONDS) for _ in range(200)]
    try:
        for raw in open_:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            raw.sendall(request)
        await asyncio.to_thread(still_serves, unharmed)
        assert unharmed.http.get("/api/v1/jobs/").status_code == 200
    finally:
        for raw in open_:
            raw.close()
    assert unharmed.api_mib() - before < GROWTH_MIB
    await eventually(lambda: unharmed.http.get("/readyz").status_code == 200)


def test_garbage_instead_of_http(unharmed: Target) -> None:
    host, port = unharmed.http.base_url.host, unharmed.http.base_url.port
    for sent in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(200),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 200_000),
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
        b"POST /api/v1/jobs/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /api/v1/jobs/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/v1/jobs/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"\0" * 1000,
    ):
        with socket.create_connection((host, port or 80), timeout=5) as raw:
            answer = b""
            with contextlib.suppress(OSError):
                raw.sendall(sent)
                answer = raw.recv(4096)
            assert not answer.startswith(b"HTTP/1.1 5"), answer[:200]
            assert b"Traceback" not in answer
    still_serves(unharmed)
