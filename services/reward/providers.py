"""Providers as an administrator configures them."""

from __future__ import annotations

from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from services.reward.core.addresses import host_problem
from services.reward.core.budget import Price
from shared.rewards.base import Contract, Name
from shared.specs.text import as_tuple, refuse

DASHSCOPE_BASES: Final = (
    "https://dashscope.aliyuncs.com/compatible-mode/v1",
    "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    "https://dashscope-us.aliyuncs.com/compatible-mode/v1",
    "https://cn-hongkong.dashscope.aliyuncs.com/compatible-mode/v1",
)
DASHSCOPE_PRICES: Final = {
    "qwen-plus": Price(0.8, 2.0, 0.2),
    "qwen-flash": Price(0.2, 1.5),
    "qwen-turbo": Price(0.3, 0.6),
    "qwen-max": Price(2.4, 9.6),
    "qwen3-max": Price(6.0, 24.0),
}
"""CNY for a million tokens, up to 128K of input; an administrator's own prices come first."""
DAILY_BUDGET: Final = 100.0


def base_problem(api_base: str) -> tuple[str, str] | None:
    """Return what is wrong with the form of a base address (English, Chinese), or None."""
    if not api_base.isprintable() or " " in api_base:
        return (
            "an address holds no blanks, line breaks or control characters",
            "地址不能包含空格、换行或控制字符",
        )
    try:
        parts = urlsplit(api_base)
        named = parts.hostname and parts.port != 0
    except ValueError:
        return (
            "it is not an address; check brackets and port",
            "不是合法的地址，请检查方括号和端口",
        )
    if parts.scheme not in ("https", "http") or not named:
        return (
            "an address begins with https:// and names a host",
            "地址应以 https:// 开头并包含主机名",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        return (
            "an address holds no user name, password, query or fragment; the key is given apart",
            "地址不能包含用户名、密码、查询或片段；密钥请单独提供",
        )
    return None


def _sound(api_base: str) -> str:
    problem = base_problem(api_base)
    if problem is not None:
        raise refuse("invalid_url", *problem)
    return api_base


ApiBase = Annotated[str, Field(min_length=8, max_length=500), AfterValidator(_sound)]
"""The form alone; whether the address is allowed here is `address_problem`."""


class PriceSpec(Contract):
    """For a million tokens, in the provider's currency."""

    input: Annotated[float, Field(ge=0, le=1e6)]
    output: Annotated[float, Field(ge=0, le=1e6)]
    cached_input: Annotated[float, Field(ge=0, le=1e6)] | None = None

    def price(self) -> Price:
        """Return it for the ledger."""
        return Price(self.input, self.output, self.cached_input)


class Fallback(Contract):
    """Who is asked instead where a provider gives no verdict; the scale stays that of the spec."""

    provider: Name
    model: Annotated[str, Field(min_length=1, max_length=128)]


class Provider(Contract):
    """Everything but the key."""

    name: Name
    kind: Literal["dashscope", "openai"] = "openai"
    api_base: ApiBase
    rpm: Annotated[float, Field(gt=0, le=1e7)] | None = None
    tpm: Annotated[float, Field(gt=0, le=1e10)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 64
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 60.0
    currency: Annotated[str, Field(min_length=1, max_length=8)] = "CNY"
    prices: Annotated[dict[str, PriceSpec], Field(max_length=200)] = Field(default_factory=dict)
    daily_budget: Annotated[float, Field(ge=0, le=1e9)] | None = DAILY_BUDGET
    fallback: Annotated[tuple[Fallback, ...], Field(max_length=3), BeforeValidator(as_tuple)] = ()

    def price(self, model: str) -> Price | None:
        """Return what a model costs, or None where nobody has said."""
        own = self.prices.get(model) or self.prices.get("*")
        if own is not None:
            return own.price()
        if self.kind != "dashscope":
            return None
        named = [n for n in DASHSCOPE_PRICES if model.startswith(n)]
        return DASHSCOPE_PRICES[max(named, key=len)] if named else None


def address_problem(api_base: str, allowed_hosts: frozenset[str]) -> tuple[str, str] | None:
    """Return why a base address is not allowed here (SSRF), or None: http and private addresses only for named hosts."""
    parts = urlsplit(api_base)
    host = parts.hostname or ""
    if host in allowed_hosts:
        return None
    setting = "TRAINYARD_REWARD_ALLOW_HTTP_HOSTS"
    if parts.scheme != "https":
        return (
            f"{host} is reached by http, which shows the key to the network; use https, or name the host in {setting}",
            f"{host} 使用 http，会在网络上暴露密钥；请使用 https，或将该主机加入 {setting}",
        )
    reason = host_problem(host)
    if reason is None:
        return None
    return (
        f"{host} is {reason}; name it in {setting} if it is a server of your own",
        f"{host} 不是公网地址；若为自有服务器，请将其加入 {setting}",
    )
