"""The one wrapper of nats-py: streams as data, publishing, readers, control bucket, the embedded broker."""

from shared.bus.control import ControlBucket, Watch
from shared.bus.jetstream import Bus
from shared.bus.port import (
    BusConfig,
    BusError,
    BusMessage,
    BusUnavailable,
    MessageTooLarge,
    NoResponder,
    PermissionDenied,
    PubAck,
    PublishTimeout,
    RequestTimeout,
    StreamFull,
    StreamMissing,
    StreamReset,
    StreamState,
)
from shared.bus.reader import Reader
from shared.bus.streams import ensure_streams

__all__ = [
    "Bus",
    "BusConfig",
    "BusError",
    "BusMessage",
    "BusUnavailable",
    "ControlBucket",
    "MessageTooLarge",
    "NoResponder",
    "PermissionDenied",
    "PubAck",
    "PublishTimeout",
    "Reader",
    "RequestTimeout",
    "StreamFull",
    "StreamMissing",
    "StreamReset",
    "StreamState",
    "Watch",
    "ensure_streams",
]
