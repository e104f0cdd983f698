"""Host, Origin, token, security headers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2
import pytest

from services.api.app import bare_app
from services.api.main import EX_CONFIG, Refused, check_settings
from services.api.settings import ApiSettings
from services.api.web import install_web
from shared.jobs.reasons import Lang
from tests.integration.api.conftest import MakeYard
from tests.integration.api.yard import ApiYard

pytestmark = [pytest.mark.contract]
TOKEN = "CANARY-token-of-this-test"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("10.0.0.5:8000", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("", 400),
        ("a" * 3000, 400),
    ],
)
async def test_only_our_own_names(yard: ApiYard, host: str, status: int) -> None:
    reply = await yard.http.get("/api/v1/jobs/", headers={"Host": host})
    assert reply.status_code == status
    if status == 400:
        assert reply.json()["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 201),
        ("http://127.0.0.1:8000", 201),
        ("http://localhost:5173", 201),
        ("https://evil.example", 403),
        ("http://127.0.0.1:9999", 403),
        ("null", 403),
    ],
)
async def test_foreign_pages_cannot_write(yard: ApiYard, origin: str | None, status: int) -> None:
    headers = {"Origin": origin} if origin else {}
    reply = await yard.http.post("/api/v1/jobs/", json=yard.body(), headers=headers)
    assert reply.status_code == status, reply.text
    if status == 403:
        assert reply.json()["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in reply.headers


async def test_a_cross_site_request_without_origin_is_refused(yard: ApiYard) -> None:
    reply = await yard.http.post(
        "/api/v1/hosts/join-codes", headers={"Sec-Fetch-Site": "cross-site"}
    )
    assert reply.status_code == 403


async def test_the_token_is_needed_everywhere_but_for_health_and_documentation(
    make_yard: MakeYard,
) -> None:
    yard = make_yard(api_token=TOKEN)
    for path in (
        "/api/v1/jobs/",
        "/api/v1/hosts/",
        "/metrics",
        "/",
        "/x",
    ):
        reply = await yard.http.get(path)
        assert (reply.status_code, reply.json()["code"]) == (401, "auth_required"), path
        assert reply.headers["www-authenticate"] == "Bearer"
    for wrong in (
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        "Bearer ",
        "Bearer " + "x" * 100_000,
    ):
        reply = await yard.http.get("/api/v1/jobs/", headers={"Authorization": wrong})
        assert (reply.status_code, reply.json()["code"]) == (401, "token_invalid"), wrong[:40]
        assert TOKEN not in reply.text
    assert (await yard.http.get("/livez")).status_code == 200
    assert (await yard.http.get("/readyz")).status_code == 503
    for path in ("/docs", "/docs/assets/start.js", "/docs/assets/swagger-ui.css", "/openapi.json"):
        assert (await yard.http.get(path)).status_code == 200, path
    for good in (f"Bearer {TOKEN}", f"bearer {TOKEN}"):
        reply = await yard.http.get("/api/v1/jobs/", headers={"Authorization": good})
        assert reply.status_code == 200


async def test_a_token_is_needed_to_be_reachable_by_others() -> None:
    with pytest.raises(Refused) as refused:
        check_settings(ApiSettings(api_host="0.0.0.0", api_token=None))
    assert refused.value.status == EX_CONFIG
    assert "TRAINYARD_API_TOKEN" in str(refused.value)
    check_settings(ApiSettings(api_host="0.0.0.0", api_token=TOKEN))
    check_settings(ApiSettings(api_host="127.0.0.1", api_token=None))


async def test_the_docs_load_nothing_from_elsewhere_and_no_inline_script(yard: ApiYard) -> None:
    page = await yard.http.get("/docs")
    assert page.status_code == 200
    assert "//" not in page.text.replace("<!doctype html>", "")
    assert "<script>" not in page.text
    wanted = re.findall(r'(?:src|href)="(/[^"]+)"', page.text)
    assert len(wanted) == 3
    for path in wanted:
        asset = await yard.http.get(path)
        assert asset.status_code == 200, path
        kind = "text/css" if path.endswith(".css") else "text/javascript"
        assert asset.headers["content-type"].startswith(kind), path
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "script-src" not in policy
    assert "http" not in policy
    assert (await yard.http.get("/docs/assets/../../etc/passwd")).status_code == 404
    assert (await yard.http.get("/docs/assets/redoc.standalone.js")).status_code == 404


async def test_every_answer_bears_the_security_headers(yard: ApiYard) -> None:
    for path in ("/api/v1/jobs/", "/nothing", "/", "/livez"):
        headers = (await yard.http.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-request-id"]


async def test_cors_is_for_named_origins(make_yard: MakeYard) -> None:
    yard = make_yard(allowed_origins="https://ui.example.org")
    ask = {"Access-Control-Request-Method": "POST", "Origin": "https://ui.example.org"}
    reply = await yard.http.options("/api/v1/jobs/", headers=ask)
    assert reply.headers["access-control-allow-origin"] == "https://ui.example.org"
    reply = await yard.http.options(
        "/api/v1/jobs/", headers=ask | {"Origin": "https://evil.example"}
    )
    assert "access-control-allow-origin" not in reply.headers


async def test_the_built_interface_answers_its_own_paths(yard: ApiYard, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<title>ui</title>")
    (tmp_path / "app.js").write_text("1")
    app = bare_app(unused)
    install_web(app, tmp_path)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        for path in ("/", "/jobs/123", "/settings"):
            reply = await http.get(path)
            assert (reply.status_code, reply.text) == (200, "<title>ui</title>"), path
        assert (await http.get("/app.js")).text == "1"
        for path in ("/api/v1/nothing", "/gone.js", "/../../etc/passwd.txt"):
            assert (await http.get(path)).status_code == 404, path
    assert "/docs" in (await yard.http.get("/")).text


async def unused(uuid: str, lang: Lang) -> dict[str, Any]:
    raise NotImplementedError(uuid, lang)
