"""The texts a spec accepts: bounded, printable, and safe in a log line, a file name and a terminal."""

from __future__ import annotations

import re
from typing import Annotated, Final
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, SecretStr
from pydantic_core import PydanticCustomError

from shared.specs.model_path import ModelPathInvalid, parse_model_path

REFUSED: Final = "refused"
LONGEST_UUID: Final = 45  # as a URN

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")
_BREAK = re.compile("[\t\n]")
# The same rules for JSON Schema, so that a client and a test know them too.
_LINE_PATTERN = r"^[^\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069\ufeff]*$"
_BLOCK_PATTERN = r"^[^\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069\ufeff]*$"
_BLANK: dict[str, JsonValue] = {"pattern": r"^\s+$"}
_HOSTNAME = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62}))*\.?"
)
_IPV6 = re.compile(r"(?=.*:)[0-9A-Fa-f:]{2,39}(?:%[A-Za-z0-9_.-]{1,16})?")
_SECRET = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_LOADER = re.compile(r"(?:LD_|DYLD_|PYTHON|TRAINYARD_).*|PATH|HOME|SHELL|IFS|BASH_ENV|ENV")
_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def refuse(code: str, en: str, zh: str, allowed: str | None = None) -> PydanticCustomError:
    """Return the error a field validator raises; `en` and `zh` follow "<field> is <value>: "."""
    context = {"code": code, "en": en, "zh": zh, "allowed": allowed}
    return PydanticCustomError(REFUSED, "{en}", context)


def one_line(text: str) -> str:
    """Refuse control characters, line breaks, direction overrides and blank text."""
    if _BREAK.search(text):
        raise refuse(
            "invalid_characters",
            "line breaks and tabs are not allowed here; write it on one line",
            "这里不允许换行和制表符，请写成一行",
        )
    return many_lines(text)


def many_lines(text: str) -> str:
    """Refuse control characters and blank text; line breaks and tabs may stay."""
    if text and not text.strip():
        raise refuse(
            "blank", "it is blank; write something or leave it out", "内容为空白，请填写或省略"
        )
    return printable(text)


def printable(text: str) -> str:
    """Refuse what a terminal, a log or a database would stumble over; line breaks and tabs may stay."""
    if _CONTROL.search(text):
        raise refuse(
            "invalid_characters",
            "it holds control or text-direction characters; remove them",
            "其中含有控制字符或文字方向字符，请删除",
        )
    return text


def _secret_line(secret: SecretStr) -> SecretStr:
    one_line(secret.get_secret_value())
    return secret


def _secret_block(secret: SecretStr) -> SecretStr:
    many_lines(secret.get_secret_value().replace("\r\n", "\n"))
    return secret


def _hostname(text: str) -> str:
    if not (_HOSTNAME.fullmatch(text) or _IPV6.fullmatch(text)):
        raise refuse(
            "invalid_hostname",
            "a host is a name such as box1 or gpu.example.org, or an IP address; give it without user, port or options",
            "主机应为 box1、gpu.example.org 这样的名称或 IP 地址；不要带用户名、端口或选项",
        )
    return text


def _username(text: str) -> str:
    if one_line(text).startswith("-") or any(c.isspace() for c in text):
        raise refuse(
            "invalid_username",
            "a user name has no spaces and does not begin with '-'",
            "用户名不能含空格，也不能以“-”开头",
        )
    return text


def _uuid(text: str) -> str:
    try:
        return str(UUID(text[: LONGEST_UUID + 1]))
    except ValueError:
        raise refuse(
            "invalid_uuid",
            "a job is named by its uuid, such as 0190c0de-0000-7000-8000-000000000001; copy it from the job list",
            "任务以 uuid 指定，例如 0190c0de-0000-7000-8000-000000000001；请从任务列表复制",
        ) from None


def _secret_name(text: str) -> str:
    if not _SECRET.fullmatch(text):
        raise refuse(
            "invalid_name",
            "a secret is named like HF_TOKEN: capitals, digits and '_', at most 64",
            "密钥名形如 HF_TOKEN：大写字母、数字和“_”，最多 64 个字符",
        )
    if _LOADER.fullmatch(text):
        raise refuse(
            "reserved_name",
            "this name steers how programs start and cannot be a secret; choose another",
            "该名称会影响程序的启动方式，不能用作密钥，请换一个",
        )
    return text


def _component(text: str) -> str:
    if not _COMPONENT.fullmatch(text):
        raise refuse(
            "invalid_name",
            "use letters, digits, '_', '.' and '-', beginning with a letter or digit, at most 64 characters",
            "请使用字母、数字、“_”“.”“-”，以字母或数字开头，最多 64 个字符",
        )
    return text


def _model_path(text: str) -> str:
    try:
        parse_model_path(one_line(text))
    except ModelPathInvalid as problem:
        raise refuse("invalid_model_path", problem.en, problem.zh) from None
    return text


def _api_base(text: str) -> str:
    rest = one_line(text).removeprefix("https://").removeprefix("http://")
    host = rest.partition("/")[0]
    if rest == text or not host or "@" in host or any(c.isspace() for c in text):
        raise refuse(
            "invalid_url",
            "an address begins with https:// (or http:// for a server of your own) and holds no user name or password",
            "地址应以 https:// 开头（自建服务可用 http://），且不含用户名或密码",
        )
    return text


def as_tuple(value: object) -> object:
    """Turn a JSON array into a tuple, so that a spec stays frozen; anything else is left to be refused."""
    return tuple(value) if isinstance(value, list) else value


def without_doubles(values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a list that names something twice."""
    if len(set(values)) != len(values):
        raise refuse(
            "duplicate", "an entry occurs twice; keep one of each", "有重复的条目，每项只保留一个"
        )
    return values


_LINE = Field(json_schema_extra={"pattern": _LINE_PATTERN, "not": _BLANK})
_UNIQUE = Field(json_schema_extra={"uniqueItems": True})

JobName = Annotated[str, Field(max_length=200), AfterValidator(one_line), _LINE]
NewName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(one_line), _LINE]
Label = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(one_line)]
Block = Annotated[
    str,
    Field(max_length=4000, json_schema_extra={"pattern": _BLOCK_PATTERN, "not": _BLANK}),
    AfterValidator(many_lines),
]
PathText = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(one_line)]
ModelPath = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_model_path)]
ApiBase = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_api_base)]
HostName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        json_schema_extra={"pattern": f"^(?:{_HOSTNAME.pattern}|{_IPV6.pattern})$"},
    ),
    AfterValidator(_hostname),
]
UserName = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_username)]
ComponentName = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_component)]
SecretLine = Annotated[
    SecretStr, Field(min_length=1, max_length=4096), AfterValidator(_secret_line)
]
SecretBlock = Annotated[
    SecretStr, Field(min_length=1, max_length=16384), AfterValidator(_secret_block)
]
SecretName = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_secret_name)]
JobUuid = Annotated[str, AfterValidator(_uuid)]
Tags = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=50), AfterValidator(one_line), _LINE], ...],
    Field(max_length=20),
    _UNIQUE,
    BeforeValidator(as_tuple),
    AfterValidator(without_doubles),
]
JobUuids = Annotated[
    tuple[JobUuid, ...],
    Field(max_length=100),
    _UNIQUE,
    BeforeValidator(as_tuple),
    AfterValidator(without_doubles),
]
