"""`POST /v1/score`: what is asked, and one answer for each item: a finite reward, or null with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shared.rewards.base import Contract, Finite
from shared.rewards.specs import Reward
from shared.specs.text import as_tuple

MAX_ITEMS: Final = 1024
MAX_COMPLETION_BYTES: Final = 256 * 1024
MAX_BODY_BYTES: Final = 32 * 1024 * 1024

ItemStatus = Literal["ok", "error", "skipped"]


class ErrorCode(StrEnum):
    """Why an item has no verdict. Never a reason for a reward of 0."""

    INVALID_ITEM = "invalid_item"
    GOLD_MISSING = "gold_missing"
    GOLD_UNPARSEABLE = "gold_unparseable"
    VERIFIER_TIMEOUT = "verifier_timeout"
    VERIFIER_CRASHED = "verifier_crashed"
    JUDGE_PARSE_FAILED = "judge_parse_failed"
    JUDGE_REFUSED = "judge_refused"
    CONTENT_FILTERED = "content_filtered"
    PROVIDER_UNKNOWN = "provider_unknown"
    PROVIDER_RATE_LIMITED = "provider_rate_limited"
    PROVIDER_QUOTA_EXHAUSTED = "provider_quota_exhausted"
    PROVIDER_AUTH = "provider_auth"
    PROVIDER_REFUSED = "provider_refused"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    PROVIDER_TIMEOUT = "provider_timeout"
    CIRCUIT_OPEN = "circuit_open"
    BUDGET_EXCEEDED = "budget_exceeded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    REWARD_MODEL_UNAVAILABLE = "reward_model_unavailable"
    COMPONENT_FAILED = "component_failed"


RETRYABLE: Final[Mapping[ErrorCode, bool]] = {
    ErrorCode.INVALID_ITEM: False,
    ErrorCode.GOLD_MISSING: False,
    ErrorCode.GOLD_UNPARSEABLE: False,
    ErrorCode.VERIFIER_TIMEOUT: True,
    ErrorCode.VERIFIER_CRASHED: True,
    ErrorCode.JUDGE_PARSE_FAILED: True,
    ErrorCode.JUDGE_REFUSED: False,
    ErrorCode.CONTENT_FILTERED: False,
    ErrorCode.PROVIDER_UNKNOWN: False,
    ErrorCode.PROVIDER_RATE_LIMITED: True,
    ErrorCode.PROVIDER_QUOTA_EXHAUSTED: False,
    ErrorCode.PROVIDER_AUTH: False,
    ErrorCode.PROVIDER_REFUSED: False,
    ErrorCode.PROVIDER_UNAVAILABLE: True,
    ErrorCode.PROVIDER_TIMEOUT: True,
    ErrorCode.CIRCUIT_OPEN: True,
    ErrorCode.BUDGET_EXCEEDED: False,
    ErrorCode.DEADLINE_EXCEEDED: True,
    ErrorCode.CANCELLED: True,
    ErrorCode.REWARD_MODEL_UNAVAILABLE: True,
    ErrorCode.COMPONENT_FAILED: True,
}


class Message(Contract):
    """One turn of a chat."""

    role: Annotated[str, Field(min_length=1, max_length=32)]
    content: str


Text = (
    str
    | Annotated[tuple[Message, ...], Field(min_length=1, max_length=256), BeforeValidator(as_tuple)]
)


class Item(Contract):
    """One completion to score."""

    id: Annotated[str, Field(min_length=1, max_length=128)]
    prompt: Text = ""
    completion: Text
    solution: str | None = None
    group_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    truncated: bool = False
    metadata: Annotated[dict[str, Any], Field(max_length=64)] = Field(default_factory=dict)


class Options(Contract):
    """How to score a batch. Times in seconds, cost in the provider's currency."""

    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    item_timeout_s: Annotated[float, Field(gt=0, le=600)] | None = None
    cache: Literal["use", "refresh", "bypass"] = "use"
    max_cost: Annotated[float, Field(ge=0, le=1e9)] | None = None
    job_max_cost: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """`max_reward_cost` of the job: over all of its requests."""
    fail: Literal["partial", "all"] = "partial"
    priority: Literal["train", "eval"] = "train"
    job_uuid: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class ScoreRequest(Contract):
    """A batch; the reward inline or by the id under which it is stored."""

    reward: Reward | None = None
    reward_id: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    items: Annotated[
        tuple[Item, ...], Field(min_length=1, max_length=MAX_ITEMS), BeforeValidator(as_tuple)
    ]
    options: Options = Options()


class Answer(BaseModel):
    """Base of what is answered: unknown fields of a newer service are left aside."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Usage(Answer):
    """Tokens that the provider counted."""

    input_tokens: int = 0
    output_tokens: int = 0


class ItemError(Answer):
    """Why there is no verdict; `provider_code` is the provider's own word for it."""

    code: ErrorCode
    retryable: bool
    message: str
    provider_code: str | None = None


class ItemResult(Answer):
    """The verdict on one item: `reward` is finite exactly where `status` is ok, else null."""

    id: str
    status: ItemStatus
    reward: Finite | None
    components: dict[str, float | None] = Field(default_factory=dict)
    """Each part's own reward, unweighted; null where it has no verdict."""
    reason: str | None = None
    extracted: str | None = None
    error: ItemError | None = None
    partial: bool = False
    cached: bool = False
    deduplicated: bool = False
    attempts: int = 1
    provider: str | None = None
    fallback: bool = False
    latency_ms: float = 0.0
    usage: Usage = Usage()
    cost: float = 0.0


class Summary(Answer):
    """Counts over one batch."""

    ok: int = 0
    error: int = 0
    skipped: int = 0
    cached: int = 0
    deduplicated: int = 0
    fallback: int = 0
    cost: float = 0.0
    currency: str = "CNY"
    budget_remaining: float | None = None
    duration_ms: float = 0.0


class ScoreResponse(Answer):
    """Exactly one result for each item, in the order asked."""

    request_id: str
    reward_version: str
    results: tuple[ItemResult, ...]
    summary: Summary
