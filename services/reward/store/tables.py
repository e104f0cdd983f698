"""Tables of the reward service's database."""

from __future__ import annotations

from sqlalchemy import Column, Float, Text
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel


class Table(SQLModel, registry=registry()):
    """Base with metadata of its own: other services have other databases."""


class ProviderRow(Table, table=True):
    """A provider; the key is sealed together with the base address it belongs to."""

    __tablename__ = "providers"

    name: str = Field(primary_key=True)
    document: str = Field(sa_column=Column(Text, nullable=False))
    key_id: str | None = None
    ciphertext: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    last4: str = ""
    updated_at: float


class RewardRow(Table, table=True):
    """A stored reward. A change is a new row: a version never says something else later."""

    __tablename__ = "rewards"

    id: str = Field(primary_key=True)
    name: str = Field(index=True)
    number: int
    version: str
    spec: str = Field(sa_column=Column(Text, nullable=False))
    created_at: float


class PurseRow(Table, table=True):
    """What a budget has spent at most: written before the calls that may spend it."""

    __tablename__ = "purses"

    name: str = Field(primary_key=True)
    spent: float
    updated_at: float = Field(sa_column=Column(Float, nullable=False, index=True))


class VerdictRow(Table, table=True):
    """A verdict that was paid for, by the hash of everything that could have changed it."""

    __tablename__ = "verdicts"

    key: str = Field(primary_key=True)
    value: str = Field(sa_column=Column(Text, nullable=False))
    expires_at: float = Field(sa_column=Column(Float, nullable=False, index=True))


class LedgerRow(Table, table=True):
    """Who we are on the bus, and how many numbered words we have said."""

    __tablename__ = "ledger"

    source: str = Field(primary_key=True)
    last_seq: int


class WordRow(Table, table=True):
    """One numbered word for the bus; `epoch`: the life of the stream that has it."""

    __tablename__ = "words"

    seq: int = Field(primary_key=True)
    id: str
    subject: str
    body: str = Field(sa_column=Column(Text, nullable=False))
    epoch: str | None = Field(default=None, index=True)
    at: float = Field(sa_column=Column(Float, nullable=False, index=True))


class UsageRow(Table, table=True):
    """Sums of one model of one provider for one job on one day (UTC)."""

    __tablename__ = "usage"

    day: str = Field(primary_key=True)
    job: str = Field(primary_key=True)
    provider: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    sums: str = Field(sa_column=Column(Text, nullable=False))
