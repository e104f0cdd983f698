"""The table of secrets: ciphertext only."""

from __future__ import annotations

from datetime import datetime

from sqlmodel import Field

from services.api.db.types import MainTable, UtcTime


class JobSecretRow(MainTable, table=True):
    """One encrypted value of one job; `key_id` names the master key that can read it."""

    __tablename__ = "job_secret"

    job: str = Field(primary_key=True, max_length=36)
    name: str = Field(primary_key=True, max_length=64)
    key_id: str = Field(max_length=16)
    ciphertext: str
    last4: str = Field(default="", max_length=4)
    created_at: datetime = Field(sa_type=UtcTime)
