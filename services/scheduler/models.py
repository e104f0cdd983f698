"""Tables of the scheduler's own database: the one truth about status, attempt, reservation and desired state."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, Index, Integer, Text
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel


class Table(SQLModel, registry=registry()):
    """Base with metadata of its own: the api's tables are in another database."""


class JobRow(Table, table=True):
    """A job: the published state, and what only decisions need."""

    __tablename__ = "jobs"

    id: str = Field(primary_key=True)
    order_n: int = Field(index=True)
    status: str
    ended: bool = Field(index=True)
    finished_at: float | None = Field(default=None, sa_column=Column(Float, index=True))
    state: str = Field(sa_column=Column(Text, nullable=False))
    data: str = Field(sa_column=Column(Text, nullable=False))


class ConfigRow(Table, table=True):
    """A job's public configuration, as it was submitted."""

    __tablename__ = "configs"

    job: str = Field(primary_key=True)
    config: str = Field(sa_column=Column(Text, nullable=False))


class AttemptRow(Table, table=True):
    """One attempt of a job; `fenced` when it was closed without its host's word."""

    __tablename__ = "attempts"

    job: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    host: str
    gpus: list[int] = Field(sa_column=Column(JSON, nullable=False))
    status: str
    reason: str | None = None
    at: float


class CheckpointRow(Table, table=True):
    """A checkpoint as its host announced it."""

    __tablename__ = "checkpoints"

    job: str = Field(primary_key=True)
    host: str = Field(primary_key=True)
    step: int = Field(primary_key=True)
    attempt: int
    seq: int
    path: str
    kind: str
    best: bool
    last: bool
    deleted: bool
    shared_root: str | None = None
    manifest_hash: str = ""
    size_bytes: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    metrics: str = Field(sa_column=Column(Text, nullable=False))


class HostRow(Table, table=True):
    """A host; what each heartbeat changes is stored about once a minute."""

    __tablename__ = "hosts"

    id: str = Field(primary_key=True)
    data: str = Field(sa_column=Column(Text, nullable=False))
    last_seen: float | None = Field(default=None, sa_column=Column(Float))


class OutboxRow(Table, table=True):
    """An event to be published on JOBS; `published` holds the epoch of the stream that has it."""

    __tablename__ = "outbox"
    __table_args__ = (
        Index("outbox_unpublished", "published", "id"),
        {"sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, primary_key=True)
    job: str = Field(index=True)
    job_n: int
    subject: str
    message_id: str
    event: str = Field(sa_column=Column(Text, nullable=False))
    traceparent: str | None = None
    at: float
    published: str | None = None


class DesiredRow(Table, table=True):
    """What a host is to do about a job; an empty entry: the key is to be removed."""

    __tablename__ = "desired"

    host: str = Field(primary_key=True)
    job: str = Field(primary_key=True)
    version: int
    outbox_id: int
    """It is written once every event up to this one is published."""
    entry: str | None = Field(default=None, sa_column=Column(Text))
    written_version: int = 0
    written_epoch: str = ""


class PositionRow(Table, table=True):
    """How far a stream was applied, or for which epoch one was written."""

    __tablename__ = "positions"

    name: str = Field(primary_key=True)
    epoch: str
    last_seq: int = Field(sa_column=Column(BigInteger, nullable=False))


class HeldRow(Table, table=True):
    """A request that came before an earlier one of its job."""

    __tablename__ = "held"

    job: str = Field(primary_key=True)
    req_n: int = Field(primary_key=True)
    request: str = Field(sa_column=Column(Text, nullable=False))


class LeaderRow(Table, table=True):
    """Who may decide; its epoch is checked in every deciding transaction."""

    __tablename__ = "leader"

    id: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    epoch: int
    holder: str
    expires: float
