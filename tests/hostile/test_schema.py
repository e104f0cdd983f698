"""The OpenAPI document tells the truth: a share of what `make bench-schema` asks, and planted lies are found."""

from __future__ import annotations

import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.api.openapi import render
from tests.hostile.fuzzing import fuzz
from tests.hostile.target import Target

pytestmark = [pytest.mark.e2e]


@pytest.mark.parametrize("known", [True, False], ids=["of what exists", "of anything"])
def test_no_answer_is_a_5xx_or_breaks_the_document(
    target: Target, tmp_path: Path, known: bool
) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    report = fuzz(target, tmp_path, seed=seed, seconds=10, known=known)
    assert report.sound, f"seed {seed}\n{report.told}"
    assert (
        report.cases > 0
    )  # how many fit into the time is the machine's affair; make bench-schema counts
    assert target.http.get("/readyz").status_code == 200


def liar(document: dict[str, Any], status: int, body: bytes) -> ThreadingHTTPServer:
    """Serve a part of the document, and one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_document = self.path == "/openapi.json"
            sent = json.dumps(document).encode() if is_document else body
            self.send_response(200 if is_document else status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("status", "body", "sign"),
    [
        (500, b"{}", "Server error"),
        (418, b"{}", "Undocumented status code"),
        (200, b'{"items": [{"id": 5}]}', "Response violates schema"),
    ],
    ids=["a 5xx", "a status", "a body"],
)
def test_a_planted_lie_is_found(tmp_path: Path, status: int, body: bytes, sign: str) -> None:
    document = json.loads(render())
    path = "/api/v1/hosts/"
    document["paths"] = {path: document["paths"][path]}
    server = liar(document, status, body)
    url = f"http://127.0.0.1:{server.server_port}"
    target = cast("Target", SimpleNamespace(url=url, ended="e", waiting="w", host="h"))
    report = fuzz(target, tmp_path, seed=1, seconds=2, known=False)
    server.shutdown()
    server.server_close()
    assert not report.sound
    assert sign in report.told, report.told
