"""Bytes from the bus into events; what cannot be read, or speaks for another than its subject, is set aside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from services.api.projections.main import Item
from services.api.telemetry.dead_letters import Rejected
from shared.bus.port import BusMessage
from shared.events import Event, EventMalformed, UnknownEvent, decode, subjects
from shared.events.job import HostUpdated, JobEventBase
from shared.events.reward import RewardFact
from shared.events.subjects import RunSubject

PART_BYTES = 512 * 1024
"""Messages applied in one transaction; larger ones would delay the frames of other jobs."""


def sized_parts(messages: Sequence[BusMessage]) -> Iterator[list[BusMessage]]:
    """Split messages, in order, into parts of about PART_BYTES."""
    part: list[BusMessage] = []
    size = 0
    for message in messages:
        if part and size + len(message.data) > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(message)
        size += len(message.data)
    if part:
        yield part


def decoded(messages: Sequence[BusMessage]) -> tuple[list[Item], list[Rejected]]:
    """Return the readable messages and the others with the reason."""
    items: list[Item] = []
    rejected: list[Rejected] = []
    for message in messages:
        try:
            envelope, event = decode(message.headers, message.data)
            _check_identity(message.subject, event)
        except EventMalformed as error:
            rejected.append((message, "undecodable", str(error)))
        except ValueError as error:
            rejected.append((message, "bad_subject", str(error)))
        else:
            items.append((message, envelope, event))
    return items, rejected


def _check_identity(subject: str, event: Event | UnknownEvent) -> None:
    """Raise ValueError when the subject, which the broker vouches for, does not fit the event."""
    if isinstance(event, UnknownEvent):
        return
    if isinstance(event, JobEventBase):
        expected = f"job.{event.state.job}"
    elif isinstance(event, HostUpdated):
        expected = f"host.{event.host}"
    elif isinstance(event, RewardFact):
        expected = subjects.reward(event.job, event.provider)
    else:
        RunSubject.parse(subject)
        return
    if subject != expected:
        raise ValueError(f"{subject} does not speak for {expected}")
