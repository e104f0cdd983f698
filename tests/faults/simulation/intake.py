"""From a message to the core's input; see services.scheduler.intake."""

from __future__ import annotations

from typing import Any

from services.scheduler.core.inputs import FactArrived, HostRequestArrived, Input, RequestArrived
from shared.events import subjects
from shared.events.requests import HostDrainRequested


def input_of(item: tuple[Any, Any, Any]) -> Input:
    """Return what a message of REQUESTS or RUNS asks or tells."""
    message, _, event = item
    if message.stream == "RUNS":
        where = subjects.RunSubject.parse(message.subject)
        return FactArrived(where.host, where.job, where.attempt, event)
    if isinstance(event, HostDrainRequested):
        return HostRequestArrived(event)
    return RequestArrived(event)
