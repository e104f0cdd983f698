"""What a provider's refusal means: by its own code first, then its words, then the HTTP status.

Source: reference reward.md section 5.1 (DashScope's error codes in both spellings) and openai's exception classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shared.rewards.scores import ErrorCode


class Effect(StrEnum):
    """What a refusal says about the provider's limits."""

    NONE = "none"
    RATE = "rate"
    """Too many requests: send slower."""
    BURST = "burst"
    """The rate rose too quickly: far slower, and up again in small steps."""
    DEGRADE = "degrade"
    """A parameter is not known there: try once with a plainer request."""
    FATAL = "fatal"
    """Nothing but a person can mend it: key, bill, access."""
    DOWN = "down"
    """The provider does not work."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused call. `retries`: how many more tries make sense, None for the usual number."""

    code: ErrorCode
    effect: Effect
    retry: bool
    message: str
    provider_code: str | None = None
    retries: int | None = None
    retry_after: float | None = None
    """Seconds that the provider asks to wait."""
    maybe_billed: bool = False
    """The call was sent and its answer lost: the provider may have worked, and charge for it."""


_Meaning = tuple[ErrorCode, Effect, bool, int | None]
_RATE: Final[_Meaning] = (ErrorCode.PROVIDER_RATE_LIMITED, Effect.RATE, True, None)
_BURST: Final[_Meaning] = (ErrorCode.PROVIDER_RATE_LIMITED, Effect.BURST, True, None)
_TOKENS: Final[_Meaning] = (ErrorCode.PROVIDER_RATE_LIMITED, Effect.RATE, True, 2)
_QUOTA: Final[_Meaning] = (ErrorCode.PROVIDER_QUOTA_EXHAUSTED, Effect.FATAL, False, 0)
_AUTH: Final[_Meaning] = (ErrorCode.PROVIDER_AUTH, Effect.FATAL, False, 0)
_FILTERED: Final[_Meaning] = (ErrorCode.CONTENT_FILTERED, Effect.NONE, False, 0)
_PARAMETER: Final[_Meaning] = (ErrorCode.PROVIDER_REFUSED, Effect.DEGRADE, False, 0)
_DOWN: Final[_Meaning] = (ErrorCode.PROVIDER_UNAVAILABLE, Effect.DOWN, True, None)

BY_CODE: Final[Mapping[str, _Meaning]] = {
    "throttling.ratequota": _RATE,
    "limit_requests": _RATE,
    "limitrequests": _RATE,
    "throttling.burstrate": _BURST,
    "limit_burst_rate": _BURST,
    "throttling.allocationquota": _TOKENS,
    "insufficient_quota": _TOKENS,
    "throttling.concurrency": _RATE,
    "throttling": _RATE,
    "rate_limit_exceeded": _RATE,
    "prepaidbilloverdue": _QUOTA,
    "postpaidbilloverdue": _QUOTA,
    "commoditynotpurchased": _QUOTA,
    "arrearage": _QUOTA,
    "allocationquota.freetieronly": _QUOTA,
    "billing_hard_limit_reached": _QUOTA,
    "accessdenied.unpurchased": _AUTH,
    "model.accessdenied": _AUTH,
    "accessdenied": _AUTH,
    "invalid_api_key": _AUTH,
    "invalidapikey": _AUTH,
    "datainspectionfailed": _FILTERED,
    "data_inspection_failed": _FILTERED,
    "content_filter": _FILTERED,
    "content_policy_violation": _FILTERED,
    "invalid_parameter_error": _PARAMETER,
    "invalidparameter": _PARAMETER,
    "unsupported_parameter": _PARAMETER,
    "model_not_found": _AUTH,
}
"""Codes in lower case."""
_BY_STATUS: Final[Mapping[int, _Meaning]] = {
    400: _PARAMETER,
    401: _AUTH,
    402: _QUOTA,
    403: _AUTH,
    404: _AUTH,
    408: (ErrorCode.PROVIDER_TIMEOUT, Effect.DOWN, True, None),
    409: _DOWN,
    413: (ErrorCode.PROVIDER_REFUSED, Effect.NONE, False, 0),
    422: _PARAMETER,
    429: _RATE,
}
LONG_WAIT: Final = 120.0
"""Seconds; whoever asks to wait longer has no quota left."""


def refusal(
    status: int, provider_code: str | None, message: str, retry_after: float | None = None
) -> Refusal:
    """Return what an HTTP answer with an error means. `message` must not hold the key: see `masked`."""
    meaning = BY_CODE.get((provider_code or "").lower())
    if meaning is None:
        meaning = _BY_STATUS.get(status, _DOWN if status >= 500 else _PARAMETER)
    if meaning is _TOKENS and _is_exhausted(message):
        meaning = _QUOTA
    if status == 429 and retry_after is not None and retry_after > LONG_WAIT:
        meaning = _QUOTA
    code, effect, retry, retries = meaning
    return Refusal(code, effect, retry, message, provider_code, retries, retry_after)


def _is_exhausted(message: str) -> bool:
    """Tell an empty plan from tokens per minute: one code stands for both."""
    lower = message.lower()
    if "#token-limit" in lower or "allocated quota exceeded" in lower:
        return False
    return "exhausted" in lower or "reset at" in lower or "billing" in lower or "plan" in lower


def timed_out(seconds: float) -> Refusal:
    """Return what a call without an answer means."""
    return Refusal(
        ErrorCode.PROVIDER_TIMEOUT,
        Effect.DOWN,
        True,
        f"no answer within {seconds:g} s",
        maybe_billed=True,
    )


def unreachable(message: str, *, sent: bool) -> Refusal:
    """Return what a failed connection means; `sent` where it broke after the call was on its way."""
    return Refusal(ErrorCode.PROVIDER_UNAVAILABLE, Effect.DOWN, True, message, maybe_billed=sent)


def garbage(message: str) -> Refusal:
    """Return what an answer that is no chat completion means."""
    return Refusal(ErrorCode.PROVIDER_UNAVAILABLE, Effect.DOWN, True, message, maybe_billed=True)
