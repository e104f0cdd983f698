"""One call to one provider by the openai client, and what came of it. No retries here: the one loop is in `provider_calls`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import openai
from openai import AsyncOpenAI

from services.reward.core.judging import Message, Mode
from services.reward.core.provider_errors import (
    Refusal,
    garbage,
    refusal,
    timed_out,
    unreachable,
)
from services.reward.providers import Provider
from services.reward.transport import CheckedTransport
from shared.rewards.scores import ErrorCode

LONGEST_MESSAGE: Final = 300
_KEY: Final = re.compile(r"sk-[A-Za-z0-9_*-]{6,}|Bearer\s+\S+")


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked."""

    model: str
    messages: tuple[Message, ...]
    schema_name: str
    schema: Mapping[str, Any]
    temperature: float
    max_tokens: int
    seed: int | None = None
    job: str | None = None
    """For which job; the provider does not hear of it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered; tokens as the provider counted them."""

    text: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    truncated: bool = False
    refused: bool = False


class Client:
    """`send` never raises for what a provider does."""

    def __init__(self, provider: Provider, key: str, allowed_hosts: frozenset[str]) -> None:
        self._provider = provider
        self._key = key
        self._transport = CheckedTransport(allowed_hosts, provider.concurrency)
        self._openai = AsyncOpenAI(
            api_key=key or "none",
            base_url=provider.api_base,
            max_retries=0,
            timeout=provider.timeout_s,
            http_client=httpx2.AsyncClient(
                transport=self._transport, follow_redirects=False, trust_env=False
            ),
        )

    async def send(self, call: Call, mode: Mode, seconds: float) -> Reply | Refusal:
        """Make one call within `seconds`."""
        limit = min(seconds, self._provider.timeout_s)
        try:
            async with asyncio.timeout(limit):
                answer = await self._openai.chat.completions.create(**self._arguments(call, mode))
        except (TimeoutError, openai.APITimeoutError):
            return timed_out(limit)
        except openai.APIStatusError as error:
            return self._refusal(error)
        except openai.APIConnectionError as error:
            cause = error.__cause__
            sent = not isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout))
            return unreachable(self._masked(str(cause or error)), sent=sent)
        except (openai.APIError, ValueError, TypeError, KeyError, RecursionError) as error:
            return garbage(f"the answer is no chat completion: {self._masked(str(error))}")
        return self._reply(answer)

    async def close(self) -> None:
        """Close the connections."""
        await self._openai.close()

    def _arguments(self, call: Call, mode: Mode) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": call.model,
            "messages": list(call.messages),
            "temperature": call.temperature,
            "max_tokens": call.max_tokens,
        }
        if call.seed is not None:
            arguments["seed"] = call.seed
        if mode == "json_schema":
            schema = {"name": call.schema_name, "strict": True, "schema": dict(call.schema)}
            arguments["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif mode == "json_object":
            arguments["response_format"] = {"type": "json_object"}
        if self._provider.kind == "dashscope" or "qwen" in call.model.lower():
            # open Qwen3 models think by default, and then refuse calls that do not stream
            arguments["extra_body"] = (
                {"enable_thinking": False}
                if self._provider.kind == "dashscope"
                else {"chat_template_kwargs": {"enable_thinking": False}}
            )
        return arguments

    def _reply(self, answer: Any) -> Reply | Refusal:
        error = getattr(answer, "error", None)
        if error:  # some gateways put an error into a 200
            told = error if isinstance(error, dict) else {}
            return refusal(500, _text(told.get("code")), self._masked(str(told.get("message", ""))))
        choices = getattr(answer, "choices", None)
        if not choices:
            return garbage("the answer has no choices")
        choice = choices[0]
        message = getattr(choice, "message", None)
        usage = getattr(answer, "usage", None)
        details = getattr(usage, "prompt_tokens_details", None)
        if choice.finish_reason == "content_filter":
            return refusal(400, "content_filter", "the provider's filter stopped the answer")
        return Reply(
            text=_text(getattr(message, "content", None)) or "",
            input_tokens=_count(usage, "prompt_tokens"),
            output_tokens=_count(usage, "completion_tokens"),
            cached_tokens=_count(details, "cached_tokens"),
            truncated=choice.finish_reason == "length",
            refused=bool(getattr(message, "refusal", None)),
        )

    def _refusal(self, error: openai.APIStatusError) -> Refusal:
        body = error.body if isinstance(error.body, dict) else {}
        nested = body.get("error")
        inner: dict[str, Any] = nested if isinstance(nested, dict) else body
        code = _text(inner.get("code")) or _text(inner.get("type"))
        message = _text(inner.get("message")) or f"HTTP {error.status_code}"
        return refusal(
            error.status_code, code, self._masked(message), _retry_after(error.response.headers)
        )

    def _masked(self, text: str) -> str:
        """Return a provider's words without the key: some repeat it in the answer to a wrong one."""
        if self._key:
            text = text.replace(self._key, "***")
            if len(self._key) >= 12:  # some show its beginning or end
                text = text.replace(self._key[:8], "***").replace(self._key[-8:], "***")
        return " ".join(_KEY.sub("***", text).split())[:LONGEST_MESSAGE]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(holder: object, name: str) -> int:
    value = getattr(holder, name, 0)
    return value if isinstance(value, int) and value >= 0 else 0


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of `retry-after-ms` or `retry-after`; a date is left to our own back-off."""
    for name, factor in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            value = float(headers.get(name, ""))
        except ValueError:
            continue
        if 0 <= value < 1e7:
            return value * factor
    return None


NO_ANSWER: Final = frozenset({ErrorCode.PROVIDER_TIMEOUT, ErrorCode.PROVIDER_UNAVAILABLE})
"""What may have been billed although nothing usable came back."""
