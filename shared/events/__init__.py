"""Event contracts: one discriminated union, CloudEvents 1.0 on the wire, subjects in `subjects.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from shared.clock import from_iso, iso
from shared.events.base import Envelope, EventBase, UnknownEvent
from shared.events.job import HostUpdated, JobEvent
from shared.events.requests import HostRequest, JobRequest
from shared.events.reward import AlertRaised, RewardEvent
from shared.events.run import Batch, RunFact

Event = (
    JobRequest | HostRequest | JobEvent | HostUpdated | RunFact | Batch | RewardEvent | AlertRaised
)
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


class EventMalformed(ValueError):
    """Bytes that are no event of ours: dead-lettered, never retried."""


def encode(event: EventBase, envelope: Envelope) -> tuple[dict[str, str], bytes]:
    """Return NATS headers (CloudEvents binary mode) and the JSON body."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": envelope.id,
        "ce-source": envelope.source,
        "ce-type": "trainyard." + str(getattr(event, "type", type(event).__name__)),
        "ce-time": iso(envelope.time),
        "content-type": "application/json",
    }
    if envelope.traceparent:
        headers["traceparent"] = envelope.traceparent
    return headers, event.model_dump_json().encode()


def decode(headers: Mapping[str, str] | None, data: bytes) -> tuple[Envelope, Event | UnknownEvent]:
    """Return envelope and event; a type this version does not know becomes UnknownEvent.

    Raises EventMalformed when the bytes are not JSON or a known type lacks a field.
    """
    envelope = _envelope(headers or {})
    try:
        event: Event = _ADAPTER.validate_json(data)
    except ValidationError as error:
        if all(e["type"] in ("union_tag_invalid", "union_tag_not_found") for e in error.errors()):
            return envelope, _unknown(data)
        raise EventMalformed(str(error)[:500]) from error
    return envelope, event


def _unknown(data: bytes) -> UnknownEvent:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EventMalformed("not JSON") from error
    if not isinstance(body, dict) or not isinstance(body.get("type"), str):
        raise EventMalformed("no event type")
    return UnknownEvent(type=body["type"], data=data.decode(errors="replace")[:10_000])


def _envelope(headers: Mapping[str, str]) -> Envelope:
    try:
        time = from_iso(headers["ce-time"])
    except (KeyError, ValueError):
        time = datetime.fromtimestamp(0).astimezone()
    return Envelope(
        id=headers.get("ce-id", ""),
        source=headers.get("ce-source", ""),
        time=time,
        traceparent=headers.get("traceparent"),
    )


__all__ = ["Envelope", "Event", "EventBase", "EventMalformed", "UnknownEvent", "decode", "encode"]
