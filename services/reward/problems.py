"""Refusals as `application/problem+json` (RFC 9457), in English or Chinese by Accept-Language."""

from __future__ import annotations

from typing import Any, Final

import orjson
from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from shared.errors import FieldProblem, TrainyardError, invalid
from shared.language import language
from shared.log import logger

LOG = logger("reward.http")
MEDIA_TYPE: Final = "application/problem+json"
_TEXTS: Final[dict[str, tuple[str, str]]] = {
    "missing": ("is missing; give it", "缺失，请提供"),
    "extra_forbidden": ("is not known here; remove it or check its spelling", "不是已知字段，请删除或检查拼写"),
    "literal_error": ("must be {expected}", "应为 {expected}"),
    "union_tag_invalid": ("must be one of {expected_tags}", "应为以下之一：{expected_tags}"),
    "union_tag_not_found": ("names no {discriminator}; give it", "缺少 {discriminator}，请提供"),
    "greater_than": ("must be above {gt}", "应大于 {gt}"),
    "greater_than_equal": ("must be {ge} or more", "应不小于 {ge}"),
    "less_than": ("must be below {lt}", "应小于 {lt}"),
    "less_than_equal": ("must be {le} or less", "应不大于 {le}"),
    "too_long": ("must have at most {max_length} entries", "最多 {max_length} 项"),
    "too_short": ("must have at least {min_length} entries", "至少 {min_length} 项"),
    "string_too_long": ("must have at most {max_length} characters", "最多 {max_length} 个字符"),
    "string_too_short": ("must have at least {min_length} characters", "至少 {min_length} 个字符"),
    "string_pattern_mismatch": (
        "uses letters, digits, '_', '.' and '-', beginning with a letter or digit",
        "只能使用字母、数字、“_”“.”“-”，且以字母或数字开头",
    ),
    "finite_number": ("must be a finite number", "应为有限数"),
    "string_type": ("must be a text", "应为文本"),
    "bool_type": ("must be true or false", "应为 true 或 false"),
    "int_type": ("must be a whole number", "应为整数"),
    "float_type": ("must be a number", "应为数字"),
    "tuple_type": ("must be a list", "应为列表"),
    "dict_type": ("must be an object", "应为对象"),
    "model_type": ("must be an object", "应为对象"),
    "json_invalid": ("is not valid JSON: {error}", "不是合法的 JSON：{error}"),
    "refused": ("is not possible: {en}", "不可行：{zh}"),
}  # fmt: skip
_TAGS: Final = frozenset(
    {"math_verify", "format_check", "rule_based", "self_play", "judge", "reward_model", "composite"}
)
_TITLES: Final = {
    404: (
        "not_found",
        "Not found",
        "未找到",
        "There is nothing at this address.",
        "该地址不存在。",
    ),
    405: (
        "method_not_allowed",
        "Method not allowed",
        "不支持该方法",
        "This address does not take this method.",
        "该地址不支持此方法。",
    ),
}


def problem_response(error: TrainyardError, scope: Scope) -> Response:
    """Return the problem document of `error` for this request."""
    header = next((v for k, v in scope.get("headers", []) if k == b"accept-language"), b"")
    body: dict[str, Any] = error.problem(language(header.decode("latin-1")))
    body["instance"] = scope.get("path", "")
    return Response(
        orjson.dumps(body, default=str),
        status_code=error.status,
        media_type=MEDIA_TYPE,
        headers=dict(error.headers),
    )


def spec_problem(error: ValidationError, prefix: str = "") -> TrainyardError:
    """Return the 422 that names each wrong field; values are left out, since one may be a secret in the wrong place."""
    errors = error.errors(include_url=False)
    # a list whose entries are wrong is reported as too short besides
    deeper = [e for e in errors if not any(_within(o["loc"], e["loc"]) for o in errors)]
    fields: dict[str, FieldProblem] = {}
    for found in deeper[:50]:
        problem = _field(found, prefix)
        fields.setdefault(problem.field, problem)
    return invalid(list(fields.values()))


def _within(inner: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _field(error: Any, prefix: str) -> FieldProblem:
    place = [
        str(part)
        for at, part in enumerate(error["loc"])
        if "[" not in str(part) and not _is_tag(at, error)
    ]
    if place[-1:] == ["str"]:  # the first of what a prompt or completion may be
        return _no_text(".".join(place[:-1]))
    field = ".".join(([prefix] if prefix else []) + place) or "body"
    context = {k: str(v) for k, v in (error.get("ctx") or {}).items()}
    en, zh = _TEXTS.get(error["type"], ("is not valid", "无效"))
    for name, value in context.items():
        en = en.replace("{" + name + "}", value)
        zh = zh.replace("{" + name + "}", value.replace(" or ", " 或 "))
    allowed = context.get("expected") or context.get("expected_tags")
    code = "unknown_field" if error["type"] == "extra_forbidden" else str(error["type"])
    return FieldProblem(field, None, f"{field} {en}.", f"{field} {zh}。", allowed, code)


def _no_text(field: str) -> FieldProblem:
    return FieldProblem(
        field,
        None,
        f"{field} must be a text, or a list of messages with role and content.",
        f"{field} 应为文本，或由 role 与 content 组成的消息列表。",
        None,
        "wrong_type",
    )


def _is_tag(place: int, error: Any) -> bool:
    """Leave out what pydantic adds to a place for the member of a union: it stands first, or behind `reward`."""
    location = error["loc"]
    return location[place] in _TAGS and (place == 0 or location[place - 1] == "reward")


def internal_error() -> TrainyardError:
    """Return what a defect of ours is told as."""
    return TrainyardError(
        "internal_error",
        500,
        "Internal error",
        "内部错误",
        "Something went wrong here that is not your fault. The log of the reward service has it.",
        "服务内部出错，与您的输入无关。详见奖励服务的日志。",
    )


def install_problems(app: FastAPI) -> None:
    """Make every exception leave as a problem document."""

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, TrainyardError)
        return problem_response(error, request.scope)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code, title_en, title_zh, en, zh = _TITLES.get(error.status_code, _TITLES[404])
        told = TrainyardError(code, error.status_code, title_en, title_zh, en, zh)
        return problem_response(told, request.scope)

    async def defect(request: Request, error: Exception) -> Response:
        LOG.error("request_failed", path=request.url.path[:200], exc_info=error)
        return problem_response(internal_error(), request.scope)

    app.add_exception_handler(TrainyardError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, defect)
