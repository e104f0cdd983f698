"""Typed identifiers; all are UUID strings except host ids, which are short and safe in a NATS subject."""

from __future__ import annotations

import os
import time
import uuid
from typing import NewType

JobId = NewType("JobId", str)
HostId = NewType("HostId", str)
MessageId = NewType("MessageId", str)


def uuid7() -> uuid.UUID:
    """Return a time-ordered UUID (RFC 9562 section 5.7); absent from the 3.11 standard library."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & 0xFFFFFFFFFFFF) << 80
    value |= 0x7 << 76
    value |= ((random >> 62) & 0xFFF) << 64
    value |= 0b10 << 62
    value |= random & 0x3FFFFFFFFFFFFFFF
    return uuid.UUID(int=value)


def new_job_id() -> JobId:
    """Return a new job id, ordered by creation time."""
    return JobId(str(uuid7()))


def new_host_id() -> HostId:
    """Return a host id: `h` and 12 hex digits, a legal NATS subject token."""
    return HostId("h" + os.urandom(6).hex())


def new_message_id() -> MessageId:
    """Return a message id, used as `Nats-Msg-Id` and CloudEvents `id`."""
    return MessageId(str(uuid7()))
