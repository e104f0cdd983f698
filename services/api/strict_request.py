"""What a request says beside what its route takes: a mistyped query parameter or field is refused, never ignored."""

from __future__ import annotations

from difflib import get_close_matches

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection

from services.api.limits import PARSED
from shared.errors import FieldProblem, invalid
from shared.specs.problems import plain, shown

_NAMES_AT_MOST = 20
_API = "/api/"


async def only_what_is_known(connection: HTTPConnection) -> None:
    """Refuse unknown and repeated query parameters, and a body where none is taken. Raises TrainyardError 422."""
    route = connection.scope.get("route")
    if not isinstance(route, APIRoute) or not connection.url.path.startswith(_API):
        return
    known = query_names(route)
    given = [name for name, _ in connection.query_params.multi_items()]
    found = [_unknown(name, known) for name in dict.fromkeys(given) if name not in known]
    found += [_twice(name) for name in known if given.count(name) > 1]
    takes_body = route.body_field is not None or "requestBody" in (route.openapi_extra or {})
    if not takes_body:
        found += _no_body(connection.scope.get(PARSED))
    if found:
        raise invalid(found[:_NAMES_AT_MOST])


def query_names(route: APIRoute) -> tuple[str, ...]:
    """Return the query parameters that a route and what it depends on take."""
    return tuple(dict.fromkeys(_names(route.dependant)))


def _names(part: Dependant) -> list[str]:
    own = [param.alias for param in part.query_params]
    return own + [name for inner in part.dependencies for name in _names(inner)]


def _unknown(name: str, known: tuple[str, ...]) -> FieldProblem:
    label = plain(name)
    near = get_close_matches(name[:80], known, n=1)
    listed = ", ".join(known)
    en = f" Did you mean {near[0]}?" if near else f" Known here: {listed or 'none'}."
    zh = f"是否应为 {near[0]}？" if near else f"此处可用：{listed or '无'}。"
    return FieldProblem(
        label,
        None,
        f"{label} is not a query parameter of this address.{en}",
        f"{label} 不是该地址的查询参数。{zh}",
        list(known),
        "unknown_field",
    )


def _twice(name: str) -> FieldProblem:
    return FieldProblem(
        name,
        None,
        f"{name} stands in the query more than once. Give it once.",
        f"查询参数 {name} 出现了多次，请只保留一个。",
        "once",
        "duplicate",
    )


def _no_body(body: object) -> list[FieldProblem]:
    """Anything but nothing, `null` and `{}` means that the sender expects something that would not happen."""
    if body is None or body == {}:
        return []
    if not isinstance(body, dict):
        return [
            FieldProblem(
                "body",
                shown("body", body),
                "This address takes no body. Send none.",
                "该地址不接受请求体，请勿发送。",
                "no body",
                "unknown_field",
            )
        ]
    return [
        FieldProblem(
            plain(name),
            None,
            f"{plain(name)} is not known here: this address takes no body. Leave it out.",
            f"{plain(name)} 不是已知字段：该地址不接受请求体，请删除。",
            "no body",
            "unknown_field",
        )
        for name in body
    ]
