"""Tables of reward usage and of alerts: copies of what the reward service said."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Index
from sqlmodel import Field

from services.api.db.types import JsonType, MainTable, UtcTime


class RewardSourceRow(MainTable, table=True):
    """Up to which word of a ledger all is counted."""

    __tablename__ = "reward_source"

    source: str = Field(primary_key=True, max_length=64)
    last_seq: int = Field(sa_type=BigInteger)


class RewardUsageRow(MainTable, table=True):
    """Sums of one model of one provider for one job on one day (UTC); `job` is empty where there was none."""

    __tablename__ = "reward_usage"
    __table_args__ = (Index("ix_reward_usage_job", "job"),)

    day: str = Field(primary_key=True, max_length=10)
    job: str = Field(primary_key=True, max_length=64)
    provider: str = Field(primary_key=True, max_length=128)
    model: str = Field(primary_key=True, max_length=128)
    calls: int = Field(default=0, sa_type=BigInteger)
    errors: dict[str, int] = Field(default_factory=dict, sa_type=JsonType)
    cache_hits: int = Field(default=0, sa_type=BigInteger)
    deduplicated: int = Field(default=0, sa_type=BigInteger)
    input_tokens: int = Field(default=0, sa_type=BigInteger)
    output_tokens: int = Field(default=0, sa_type=BigInteger)
    cost: float = 0.0
    currency: str = Field(default="CNY", max_length=8)
    latency: list[int] = Field(default_factory=list, sa_type=JsonType)


class AlertRow(MainTable, table=True):
    """One alert; `published` once the stream ALERTS has it."""

    __tablename__ = "alert"
    __table_args__ = (Index("ix_alert_at", "at"), Index("ix_alert_published", "published"))

    id: str = Field(primary_key=True, max_length=100)
    at: datetime = Field(sa_type=UtcTime)
    rule: str = Field(max_length=64)
    severity: str = Field(max_length=16)
    job: str | None = Field(default=None, max_length=64)
    provider: str | None = Field(default=None, max_length=128)
    message_en: str = Field(max_length=2000)
    message_zh: str = Field(max_length=2000)
    published: bool = False
