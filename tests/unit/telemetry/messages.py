"""Messages of the streams, as small as a test needs them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from services.api.projections.main import Item
from shared.bus.port import BusMessage
from shared.events import Envelope
from shared.events.base import EventBase
from shared.events.job import JOB_EVENTS
from shared.events.run import LogBatch, MetricsBatch
from shared.jobs.lifecycle import Change, JobState
from shared.jobs.status import JobStatus

AT = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
STATUS_OF = {
    Change.COMPLETED: JobStatus.COMPLETED,
    Change.FAILED: JobStatus.FAILED,
    Change.CANCELLED: JobStatus.CANCELLED,
    Change.PAUSED: JobStatus.PAUSED,
    Change.RUNNING: JobStatus.RUNNING,
}


def item(
    subject: str, event: EventBase, seq: int = 1, stream: str = "METRICS", after: float = 0.0
) -> Item:
    """Return a message that the broker had `after` seconds after the first one."""
    message = BusMessage(subject, {}, b"", stream, seq, AT + timedelta(seconds=after), "e1")
    return message, Envelope("id", "/trainyard/test", AT), event  # type: ignore[return-value]


def job_event(change: Change, job_n: int, job: str = "j", **fields: Any) -> EventBase:
    status = STATUS_OF.get(change, JobStatus.PENDING)
    state = JobState(job=job, job_n=job_n, **({"status": status} | fields))
    return JOB_EVENTS[change](at=AT, state=state)  # type: ignore[call-arg]


def metric(step: int, **metrics: Any) -> dict[str, Any]:
    return {"t": 1e9 + step, "type": "metric", "step": step, "epoch": step / 10, "metrics": metrics}


def met(first: int, items: Sequence[dict[str, Any]]) -> MetricsBatch:
    return MetricsBatch(first_seq=first, items=tuple(items))


def log(first: int, lines: Sequence[str]) -> LogBatch:
    items = tuple({"t": 1e9, "level": "INFO", "message": line} for line in lines)
    return LogBatch(first_seq=first, items=items)
