"""The table of complete checkpoints."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger
from sqlmodel import Field

from services.api.db.types import JsonType, MainTable, UtcTime


class CheckpointRow(MainTable, table=True):
    """One complete checkpoint; of several attempts at a step the newest one's stands here."""

    __tablename__ = "checkpoint"

    job: str = Field(primary_key=True, max_length=36)
    step: int = Field(primary_key=True)
    attempt: int
    host: str = Field(max_length=64)
    kind: str = Field(max_length=16)
    path: str = Field(max_length=4096)
    size_bytes: int = Field(default=0, sa_type=BigInteger)
    manifest_hash: str = Field(default="", max_length=128)
    metrics: dict[str, Any] = Field(default_factory=dict, sa_type=JsonType)
    best: bool = False
    created_at: datetime = Field(sa_type=UtcTime)
    deleted: bool = False
