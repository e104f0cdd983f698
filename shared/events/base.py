"""What all events share: frozen, tolerant of new fields, and CloudEvents 1.0 attributes beside the data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict


class EventBase(BaseModel):
    """A fact in the past tense. Types are added, never changed: a golden file holds each for ever."""

    model_config = ConfigDict(frozen=True, extra="ignore")


@dataclass(frozen=True, slots=True)
class Envelope:
    """CloudEvents attributes, carried in NATS headers (`ce-id`, `ce-source`, …)."""

    id: str
    source: str
    """`/trainyard/api`, `/trainyard/scheduler`, `/trainyard/agent/<host>`, `/trainyard/reward`."""
    time: datetime
    traceparent: str | None = None
    """W3C trace context."""


class UnknownEvent(EventBase):
    """An event of a newer version: noted once and acknowledged, so that nothing jams."""

    type: str
    data: str
