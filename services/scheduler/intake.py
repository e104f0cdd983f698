"""Messages of the bus become inputs of the core; what cannot be one is logged and passed over, so nothing jams."""

from __future__ import annotations

from typing import get_args

from services.scheduler.core.inputs import (
    FactArrived,
    HostRequestArrived,
    Input,
    RequestArrived,
)
from shared.bus import BusMessage
from shared.events import EventMalformed, UnknownEvent, decode
from shared.events.requests import HostDrainRequested, HostForgetRequested, JobRequest
from shared.events.run import RunFact
from shared.events.subjects import RunSubject
from shared.log import logger

log = logger("scheduler.intake")
_JOB_REQUESTS = get_args(JobRequest)
_RUN_FACTS = get_args(RunFact)


def request_of(message: BusMessage) -> tuple[Input | None, str | None]:
    """Return the input that a message of REQUESTS carries, and its trace; None for what is none."""
    try:
        envelope, event = decode(message.headers, message.data)
    except EventMalformed as error:
        _pass_over(message, str(error))
        return None, None
    if isinstance(event, UnknownEvent):
        _pass_over(message, f"unknown type {event.type}")
        return None, None
    tail = message.subject.rpartition(".")[2]
    if isinstance(event, _JOB_REQUESTS) and event.job == tail:
        return RequestArrived(event), envelope.traceparent
    if isinstance(event, HostDrainRequested | HostForgetRequested) and event.host == tail:
        return HostRequestArrived(event), envelope.traceparent
    _pass_over(message, f"{getattr(event, 'type', '?')} does not belong on this subject")
    return None, None


def fact_of(message: BusMessage) -> Input | None:
    """Return the input that a message of RUNS carries; host, job and attempt come from its subject."""
    try:
        where = RunSubject.parse(message.subject)
        _, event = decode(message.headers, message.data)
    except ValueError as error:
        _pass_over(message, str(error))
        return None
    if where.prefix != "run" or not isinstance(event, _RUN_FACTS):
        _pass_over(message, f"{getattr(event, 'type', '?')} is no fact of a run")
        return None
    return FactArrived(where.host, where.job, where.attempt, event)


def _pass_over(message: BusMessage, why: str) -> None:
    log.warning(
        "message_passed_over",
        stream=message.stream,
        seq=message.seq,
        subject=message.subject,
        reason=why[:300],
        body=message.data[:200].decode(errors="replace"),
    )
