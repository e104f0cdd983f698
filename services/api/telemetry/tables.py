"""Tables of the telemetry database, as SQLAlchemy Core: ingest writes thousands of rows a second in bulk.

A row carries the number of the frame it gave rise to, so a frame is never stored beside its row:
`frames.read_frames` makes it again from `record`, `metric_line` and `metric_chunk`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    false,
    text,
)

from services.api.db.positions import projection_position_table

METADATA = MetaData()

projector = Table(
    "projector",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("token", BigInteger, nullable=False, doc="the newest projector; older ones stop"),
    Column("frame_base", BigInteger, nullable=False, doc="where counters of new jobs start"),
)

projection_position = projection_position_table(METADATA)

job_live = Table(
    "job_live",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("job", Text, nullable=False, unique=True),
    Column("frame_seq", BigInteger, nullable=False, doc="the one counter of this job's frames"),
    Column("job_n", BigInteger, nullable=False, doc="last job.* event applied"),
    Column("state", Text, doc="JobState of that event"),
    Column("pending", Text, doc="terminal JobState that waits for the last telemetry"),
    Column("ended_seq", BigInteger, doc="frame of the terminal status; null while it lives"),
    Column("deleted", Integer, nullable=False, doc="0 no, 1 being emptied, 2 empty"),
    Column("latest", Text, nullable=False, doc="{name: [value, step]} of every metric"),
    Column("latest_step", Float),
    Column("latest_attempt", Integer, nullable=False),
    Column("progress", Text),
    Column("capped", Boolean, nullable=False, server_default=false()),
    Column("tail_lines", Integer, nullable=False),
    Column("tail_points", Integer, nullable=False),
)
OPEN_WORK = text("(pending IS NOT NULL OR deleted = 1)")
"""Jobs for which the projector still has something to do besides new messages. In brackets: SQLAlchemy sets none around a text."""
Index("ix_job_live_open", job_live.c.id, sqlite_where=OPEN_WORK, postgresql_where=OPEN_WORK)

attempt = Table(
    "attempt",
    METADATA,
    Column("job_id", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("host", Text),
    Column("fenced", Boolean, nullable=False, doc="a newer one was assigned before this ended"),
    Column("fenced_at", Float, doc="broker's time of that assignment; null: before every batch"),
    Column("ended", Boolean, nullable=False),
    Column("run_seq", BigInteger, nullable=False),
    Column("met_seq", BigInteger, nullable=False),
    Column("log_seq", BigInteger, nullable=False),
    Column("smp_seq", BigInteger, nullable=False),
    Column("sys_seq", BigInteger, nullable=False),
)

record = Table(
    "record",
    METADATA,
    Column("job_id", Integer, primary_key=True),
    Column("seq", BigInteger, primary_key=True, doc="frame number"),
    Column("type", Text, nullable=False, doc="frame type; never metric or snapshot"),
    Column("attempt", Integer),
    Column("step", Float),
    Column("level", Integer, doc="of a log line: 10 DEBUG … 40 ERROR"),
    Column("value", Float, doc="reward of a sample, to sort by"),
    Column("time", Float, nullable=False, doc="seconds since the epoch"),
    Column("text", Text, doc="message of a log line, prompt of a sample: to search in"),
    Column("body", Text, doc="the rest, JSON"),
    sqlite_with_rowid=False,
)
Index("ix_record_type", record.c.job_id, record.c.type, record.c.seq)

metric_line = Table(
    "metric_line",
    METADATA,
    Column("job_id", Integer, primary_key=True),
    Column("seq", BigInteger, primary_key=True, doc="frame number"),
    Column("attempt", Integer, nullable=False),
    Column("step", Float, nullable=False),
    Column("epoch", Float),
    Column("time", Float, nullable=False),
    Column("body", Text, nullable=False, doc='{name: number | "nan" | "inf" | "-inf"}'),
    sqlite_with_rowid=False,
)

metric_chunk = Table(
    "metric_chunk",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("job_id", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("points", Integer, nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("step_min", Float, nullable=False),
    Column("step_max", Float, nullable=False),
    Column("value_min", Float, doc="of the finite values; null where there is none"),
    Column("value_max", Float),
    Column("value_first", Float, doc="null where it is not finite"),
    Column("value_last", Float),
    # SQLite walks a row's overflow pages from the left: the columns of a chart by step come first.
    Column("step", LargeBinary, nullable=False),
    Column("value", LargeBinary, nullable=False),
    Column("seq", LargeBinary, nullable=False, doc="int64 frame numbers"),
    Column("epoch", LargeBinary, nullable=False),
    Column("time", LargeBinary, nullable=False),
)
Index("ix_chunk_series", metric_chunk.c.job_id, metric_chunk.c.name, metric_chunk.c.first_seq)
Index("ix_chunk_frames", metric_chunk.c.job_id, metric_chunk.c.last_seq)

dead_letter = Table(
    "dead_letter",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("stream", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("subject", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("time", Float, nullable=False),
    Column("data", LargeBinary, nullable=False, doc="the first DEAD_LETTER_BYTES"),
)
