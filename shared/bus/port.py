"""What the rest of the system sees of the bus: plain data and typed errors, nothing of nats-py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from shared.events.base import EventBase

Callback = Callable[[], Awaitable[None]]
Serve = Callable[[str, bytes], Awaitable[EventBase | None]]
"""Handler of a request: subject and body; None leaves it unanswered (a standby, for instance)."""
Listen = Callable[[str, bytes], Awaitable[None]]
KeyHandler = Callable[[str, bytes | None], Awaitable[None]]
"""Handler of a control key: its new value, or None when it is gone."""


class BusError(Exception):
    """Base of everything the bus raises."""


class BusUnavailable(BusError):
    """The broker is away: nothing was sent. Try again later."""


class NoResponder(BusUnavailable):
    """Nobody serves this request subject now."""


class RequestTimeout(BusUnavailable):
    """No answer before the deadline; the request may have been handled."""


class PublishTimeout(BusError):
    """No acknowledgement before the deadline, or the link broke: the outcome is unknown.

    Publish again with the same `msg_id`; the stream drops the copy if the first one arrived.
    """


class PermissionDenied(BusError):
    """The broker does not let this identity use `subject`."""

    def __init__(self, subject: str) -> None:
        """Name the subject."""
        super().__init__(f"not permitted on {subject}")
        self.subject = subject


class StreamFull(BusError):
    """`stream` holds its `max_bytes`: keep the message and publish it later."""

    def __init__(self, stream: str) -> None:
        """Name the stream."""
        super().__init__(f"stream {stream} is full")
        self.stream = stream


class StreamMissing(BusError):
    """`stream` does not exist (yet): `ensure_streams` makes it."""

    def __init__(self, stream: str) -> None:
        """Name the stream."""
        super().__init__(f"stream {stream} does not exist")
        self.stream = stream


class MessageTooLarge(BusError):
    """Headers and body exceed what the broker takes; splitting is the caller's."""


class StreamReset(BusError):
    """The stream was made anew, or lies behind the reader: start again from (`epoch`, 0)."""

    def __init__(self, stream: str, epoch: str, last_seq: int) -> None:
        """Carry what the stream is now."""
        super().__init__(f"stream {stream} was reset (epoch {epoch}, last sequence {last_seq})")
        self.stream = stream
        self.epoch = epoch
        self.last_seq = last_seq


@dataclass(frozen=True, slots=True)
class BusConfig:
    """Where the broker is and who we are there."""

    url: str
    name: str
    seed: str | None
    """The nkey seed (`SU…`); never logged."""
    inbox_prefix: str
    """`_INBOX.<name>`: the only replies that this identity may read."""
    tls_ca: Path | None = None

    def __repr__(self) -> str:
        """Leave the seed out."""
        return f"BusConfig(url={self.url!r}, name={self.name!r})"


@dataclass(frozen=True, slots=True)
class PubAck:
    """The stream has it on disk (streams with `persist_mode` async: in the page cache)."""

    stream: str
    seq: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class StreamState:
    """What a stream holds. Another `epoch` means that sequence numbers may name other messages than before.

    It changes when the stream was made anew; for METRICS, LOGS and SAMPLES also with each start of the broker,
    which may have lost acknowledged messages of theirs: writers send again what is unconfirmed.
    """

    name: str
    epoch: str
    first_seq: int
    last_seq: int
    messages: int
    bytes: int
    max_bytes: int = -1
    """What it holds at most; -1: no bound."""


@dataclass(frozen=True, slots=True)
class BusMessage:
    """One stored message. `seq` is a position in the stream of this `epoch`, never an identity."""

    subject: str
    headers: Mapping[str, str]
    data: bytes
    stream: str
    seq: int
    time: datetime
    epoch: str
