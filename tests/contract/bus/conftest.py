"""Small events to send, and what every bus test marks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from shared.events import Envelope, EventBase
from shared.events.run import MetricsBatch, RunCollected
from shared.ids import new_message_id

Item = tuple[str, EventBase, Envelope, str]


@pytest.fixture
def envelope() -> Callable[[], Envelope]:
    """Make envelopes with a new id."""

    def make() -> Envelope:
        return Envelope(new_message_id(), "/trainyard/test", datetime.now(UTC))

    return make


@pytest.fixture
def batch(envelope: Callable[[], Envelope]) -> Callable[..., Item]:
    """Make the publishable metrics batch number n of one attempt."""

    def make(n: int, subject: str = "met.box1.job.1", text: str = "") -> Item:
        event = MetricsBatch(first_seq=n, items=({"step": n, "text": text},))
        return subject, event, envelope(), str(n)

    return make


@pytest.fixture
def fact(envelope: Callable[[], Envelope]) -> Callable[..., Item]:
    """Make the publishable run fact number n of one attempt."""

    def make(n: int, subject: str = "run.box1.job.1") -> Item:
        return subject, RunCollected(seq=n, t=0.0), envelope(), str(n)

    return make
