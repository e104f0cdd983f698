"""The table of users' requests, which is the outbox at the same time."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, Integer
from sqlmodel import Field

from services.api.db.types import JsonType, MainTable, UtcTime

_POSITION: Any = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in an INTEGER key."""


class RequestRow(MainTable, table=True):
    """One request of a user about a job or a host; written with the change it belongs to, published afterwards."""

    __tablename__ = "request"
    __table_args__ = (
        Index("uq_request_key_req_n", "key", "req_n", unique=True),
        Index("ix_request_epoch_position", "epoch", "position"),
    )

    position: int | None = Field(
        default=None,
        primary_key=True,
        sa_type=_POSITION,
    )
    """Order of publishing."""
    id: str = Field(max_length=36)
    """`Nats-Msg-Id`, the same at every publishing."""
    key: str = Field(max_length=64)
    """`job:<uuid>` or `host:<id>`; `req_n` is dense within it."""
    req_n: int
    type: str = Field(max_length=64)
    body: dict[str, Any] = Field(sa_type=JsonType)
    at: datetime = Field(sa_type=UtcTime)
    epoch: str | None = Field(default=None, max_length=200)
    """Life of the stream in which it was last confirmed; None: not published yet."""
