"""What the reward service says: `rw.<job>.<provider>`, `none` where there is no job. Written by the reward service alone.

`source` names one ledger, and `seq` is dense within it, so that what arrives twice counts once.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from shared.events.base import EventBase

LATENCY_EDGES_MS = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000)
"""Upper ends of the buckets of `latency`; one more bucket is above them all."""


class RewardFact(EventBase):
    """One numbered word of a ledger."""

    source: str
    seq: int


class RewardUsed(RewardFact):
    """What one model of one provider was asked for one job since the last such event; counts and costs add up."""

    type: Literal["reward.used.v1"] = "reward.used.v1"
    day: str
    """UTC, `2026-11-26`."""
    job: str | None
    provider: str
    model: str
    calls: int = 0
    errors: dict[str, int] = Field(default_factory=dict)
    """Calls without a reply, by error code."""
    cache_hits: int = 0
    deduplicated: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    currency: str = "CNY"
    latency: tuple[int, ...] = ()
    """Calls by time, see LATENCY_EDGES_MS."""


class RewardAlerted(RewardFact):
    """A provider is failing, or a budget has passed 80 %."""

    type: Literal["reward.alerted.v1"] = "reward.alerted.v1"
    at: datetime
    rule: Literal["provider_failing", "budget_low"]
    severity: Literal["warning", "critical"]
    job: str | None = None
    provider: str | None = None
    message_en: str
    message_zh: str


class AlertRaised(EventBase):
    """An alert for subscribers: `alert.<severity>.<rule>.<job>`, `none` where it is about no job."""

    type: Literal["alert.raised.v1"] = "alert.raised.v1"
    id: str
    at: datetime
    rule: str
    severity: Literal["warning", "critical"]
    job: str | None = None
    provider: str | None = None
    message_en: str
    message_zh: str


RewardEvent = RewardUsed | RewardAlerted
