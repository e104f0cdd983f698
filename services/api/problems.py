"""Every refusal as `application/problem+json` (RFC 9457), in the language of the request, never with a trace."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Scope

from services.api.validation import field_problems
from shared.bus.port import BusError, BusUnavailable
from shared.db import DatabaseBusy, DatabaseFull
from shared.disk.levels import Shortage, shortage
from shared.disk.reserve import NO_ROOM
from shared.disk.volumes import volume_of
from shared.errors import TrainyardError, invalid, unavailable
from shared.jobs.reasons import Lang
from shared.language import language

MEDIA_TYPE = "application/problem+json"

_TITLES: dict[int, tuple[str, str, str, str, str]] = {
    400: (
        "bad_request",
        "Bad request",
        "请求有误",
        "The request cannot be read.",
        "无法读取该请求。",
    ),
    404: (
        "not_found",
        "Not found",
        "未找到",
        "There is nothing at this address. /docs lists what there is.",
        "该地址不存在，/docs 列出了所有接口。",
    ),
    405: (
        "method_not_allowed",
        "Method not allowed",
        "不支持该方法",
        "This address does not take this method; the Allow header and /docs say which it takes.",
        "该地址不支持此方法；可用的方法见 Allow 响应头和 /docs。",
    ),
}


def scope_language(scope: Scope) -> Lang:
    """Return the language of a request that has not reached a route."""
    header = next((v for k, v in scope.get("headers", []) if k == b"accept-language"), b"")
    return language(header.decode("latin-1"))


def problem_response(error: TrainyardError, scope: Scope) -> Response:
    """Return the problem document of `error` for this request."""
    body: dict[str, Any] = error.problem(scope_language(scope))
    body["instance"] = scope.get("path", "")
    request_id = scope.get("trainyard.request_id")
    if request_id:
        body["request_id"] = request_id
    return Response(
        json.dumps(body, ensure_ascii=False, allow_nan=False, default=str).encode(
            errors="backslashreplace"
        ),
        status_code=error.status,
        media_type=MEDIA_TYPE,
        headers=dict(error.headers),
    )


def internal_error() -> TrainyardError:
    """Return what a defect of ours is told as; the log has the rest under the request id."""
    return TrainyardError(
        "internal_error",
        500,
        "Internal error",
        "内部错误",
        "Something went wrong here that is not your fault. The log of the api has it under this request_id.",
        "服务内部出错，与您的输入无关。可凭此 request_id 在 api 日志中查到详情。",
    )


def known_error(error: Exception) -> TrainyardError | None:
    """Return the refusal that a known exception stands for, or None for a defect."""
    if isinstance(error, TrainyardError):
        return error
    if isinstance(error, DatabaseBusy):
        return unavailable(
            "database_busy",
            "The database is busy; nothing was changed. Try again in a moment.",
            "数据库繁忙，未做任何更改，请稍后重试。",
        )
    if isinstance(error, DatabaseFull):
        return database_full(error.shortage)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return _file_full(error)
    if isinstance(error, BusUnavailable):
        return unavailable(
            "bus_unavailable",
            "The message broker is away, and this needs it. Try again in a moment.",
            "消息代理暂不可用，而此操作需要它，请稍后重试。",
        )
    if isinstance(error, BusError):
        return unavailable(
            "bus_refused",
            f"The message broker refused: {error}. See the api's log.",
            f"消息代理拒绝了操作：{error}。详见 api 日志。",
        )
    return None


def database_full(short: Shortage | None) -> TrainyardError:
    """Return the 503 for a volume without room for requests: it names path, need and have."""
    en = f": {short.en}" if short else ""
    zh = f"：{short.zh}" if short else ""
    return unavailable(
        "database_full",
        f"The disk of the database is full{en}; nothing was changed. "
        "Free some space on the api's machine and send the request again; running jobs go on.",
        f"数据库所在磁盘已满{zh}，未做任何更改。请在 api 所在机器上清理空间后重新发送请求；运行中的任务不受影响。",
        retry_after=10,
    )


def _file_full(error: OSError) -> TrainyardError:
    """Return the 503 for a file that found no room."""
    volume = volume_of(str(error.filename)) if error.filename else None
    short = shortage(volume) if volume else None
    en, zh = (f": {short.en}", f"：{short.zh}") if short else ("", "")
    return unavailable(
        "disk_full",
        f"A disk of the api's machine is full{en}. Free some space there and send the request again.",
        f"api 所在机器的磁盘已满{zh}。请在该处释放空间后重新发送请求。",
        retry_after=10,
    )


def http_error(status: int, headers: dict[str, str] | None = None) -> TrainyardError:
    """Return the refusal for a bare HTTP status that the framework raised."""
    code, title_en, title_zh, en, zh = _TITLES.get(status, _TITLES[400])
    return TrainyardError(code, status, title_en, title_zh, en, zh, headers=headers or {})


def allowed_methods(request: Request) -> list[str]:
    """Return every method that this path takes: the framework names those of one route alone."""
    path = request.url.path
    paths = request.app.openapi()["paths"]
    # A path that is spelled out wins over one with a name in it.
    known = {path: paths[path]} if path in paths else paths
    found: set[str] = set()
    for template, item in known.items():
        if compile_path(template)[0].match(path):
            found |= {method.upper() for method in item}
    return sorted(found)


def install_problems(app: FastAPI) -> None:
    """Make every exception that a route raises leave as a problem document."""

    async def known(request: Request, error: Exception) -> Response:
        told = known_error(error)
        if told is None:
            raise error
        return problem_response(told, request.scope)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = {str(k).lower(): str(v) for k, v in (error.headers or {}).items()}
        if error.status_code == 405:
            known = allowed_methods(request)
            headers |= {"allow": ", ".join(known)} if known else {}
        return problem_response(http_error(error.status_code, headers), request.scope)

    async def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        # Whatever stands in the body of these may be a secret in the wrong place.
        masked = "/secrets" in request.url.path or request.url.path.endswith("/join")
        found = field_problems(error.errors(), masked=masked)
        return problem_response(invalid(found), request.scope)

    for kind in (TrainyardError, DatabaseBusy, DatabaseFull, BusError, OSError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, validation)
