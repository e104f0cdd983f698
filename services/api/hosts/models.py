"""Tables of hosts and of the one-time codes by which they join."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger
from sqlmodel import Field

from services.api.db.types import JsonType, MainTable, UtcTime


class HostRow(MainTable, table=True):
    """One host: how it joined (truth) and what the scheduler last said of it (copy)."""

    __tablename__ = "host"

    id: str = Field(primary_key=True, max_length=64)
    label: str = Field(max_length=253, index=True)
    public_key: str | None = Field(default=None, max_length=128)
    joined_at: datetime | None = Field(default=None, sa_type=UtcTime)
    req_n: int = 0
    """Number of the user's last request about this host."""
    host_n: int = Field(default=0, sa_type=BigInteger)
    """Of the scheduler's last word; it grows with the clock, in milliseconds."""
    online: bool = False
    drained: bool = False
    forgotten: bool = False
    last_seen: datetime | None = Field(default=None, sa_type=UtcTime)
    inventory: dict[str, Any] | None = Field(default=None, sa_type=JsonType)
    runs: list[str] = Field(default_factory=list, sa_type=JsonType)


class JoinCodeRow(MainTable, table=True):
    """A code that one host may use once; only its hash is kept."""

    __tablename__ = "join_code"

    code_hash: str = Field(primary_key=True, max_length=64)
    created_at: datetime = Field(sa_type=UtcTime)
    expires_at: datetime = Field(sa_type=UtcTime)
    used_at: datetime | None = Field(default=None, sa_type=UtcTime)
    host: str | None = Field(default=None, max_length=64)
