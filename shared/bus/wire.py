"""The JetStream API as JSON requests: stream and consumer calls, acknowledgements, error codes.

Raw requests rather than nats-py's JetStream context, because that retries silently, changes the caller's headers,
drops fields that it does not know, and reports a forbidden subject as a timeout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from shared.bus.connection import Connection
from shared.bus.link import LinkLost, Msg
from shared.bus.port import (
    BusError,
    BusUnavailable,
    MessageTooLarge,
    NoResponder,
    PubAck,
    PublishTimeout,
    StreamFull,
    StreamMissing,
    StreamState,
)

API = "$JS.API"
API_TIMEOUT = 5.0
_FULL = {10076, 10077, 10023, 10028, 10047, 10120}
"""Maximum messages, maximum bytes, insufficient resources, memory, storage, memory of the account."""
_TOO_LARGE = {10054}
_MISSING = {10059}
_AWAY = {10008, 10009, 10039}
"""Cluster not available, no leader, JetStream not enabled for the account (yet)."""
NAME_IN_USE = 10058


class ApiError(BusError):
    """An answer of the JetStream API that has no type of its own."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        """Carry what the broker said."""
        super().__init__(f"{description} ({code}, {err_code})")
        self.code = code
        self.err_code = err_code


def raise_for(body: Mapping[str, Any], stream: str) -> None:
    """Raise the typed error that `body` reports, if any."""
    error = body.get("error")
    if not error:
        return
    code, err_code = int(error.get("code", 0)), int(error.get("err_code", 0))
    description = str(error.get("description", "error"))
    if err_code in _FULL:
        raise StreamFull(stream)
    if err_code in _TOO_LARGE:
        raise MessageTooLarge(f"{description} on {stream}")
    if err_code in _MISSING:
        raise StreamMissing(stream)
    if err_code in _AWAY:
        raise BusUnavailable(description)
    raise ApiError(code, err_code, description)


async def call(
    connection: Connection,
    endpoint: str,
    body: Mapping[str, Any] | None = None,
    *,
    stream: str = "",
    timeout: float = API_TIMEOUT,
) -> dict[str, Any]:
    """Call `$JS.API.<endpoint>`. Raises the errors of `Connection.request` and `raise_for`."""
    data = json.dumps(body).encode() if body is not None else b""
    try:
        message = await connection.request(f"{API}.{endpoint}", data, timeout)
    except NoResponder as error:
        raise BusUnavailable("JetStream is not ready") from error
    answer: dict[str, Any] = json.loads(message.data)
    raise_for(answer, stream)
    return answer


async def stream_info(
    connection: Connection, stream: str, timeout: float = API_TIMEOUT
) -> dict[str, Any]:
    """Return configuration and state of a stream. Raises StreamMissing."""
    return await call(connection, f"STREAM.INFO.{stream}", stream=stream, timeout=timeout)


def epoch_of(connection: Connection, info: Mapping[str, Any]) -> str:
    """Return the epoch: when the stream was made, which survives restarts and updates.

    A stream with `persist_mode` async may lose what it acknowledged when its broker dies, and then gives the same
    sequence numbers to other messages. Its epoch therefore also names the broker process: after each restart of
    the broker, readers start over and writers send again what is not confirmed.
    """
    created = str(info["created"])
    if info["config"].get("persist_mode") == "async":
        return f"{created}/{connection.server_id}"
    return created


def state_of(connection: Connection, info: Mapping[str, Any]) -> StreamState:
    """Return the state part of a STREAM.INFO answer."""
    state = info["state"]
    return StreamState(
        name=str(info["config"]["name"]),
        epoch=epoch_of(connection, info),
        first_seq=int(state["first_seq"]),
        last_seq=int(state["last_seq"]),
        messages=int(state["messages"]),
        bytes=int(state["bytes"]),
        max_bytes=int(info["config"].get("max_bytes", -1)),
    )


async def create_consumer(
    connection: Connection,
    stream: str,
    name: str,
    subjects: tuple[str, ...],
    config: Mapping[str, Any],
    timeout: float = API_TIMEOUT,
) -> dict[str, Any]:
    """Create a named, ephemeral, memory-only consumer without acknowledgements.

    A single filter travels in the request's subject, so that the broker's permissions can scope it.
    """
    body: dict[str, Any] = {
        "name": name,
        "ack_policy": "none",
        "mem_storage": True,
        "num_replicas": 1,
        "max_deliver": -1,
        "replay_policy": "instant",
        **config,
    }
    endpoint = f"CONSUMER.CREATE.{stream}.{name}"
    if len(subjects) == 1:
        body["filter_subject"] = subjects[0]
        endpoint += f".{subjects[0]}"
    else:
        body["filter_subjects"] = list(subjects)
    request = {"stream_name": stream, "config": body, "action": "create"}
    return await call(connection, endpoint, request, stream=stream, timeout=timeout)


def parse_ack(message: Msg, stream: str) -> PubAck:
    """Return the acknowledgement of a publish. Raises the error it reports."""
    if message.headers and message.headers.get("Status") == "503":
        raise StreamMissing(stream)
    body = json.loads(message.data)
    raise_for(body, stream)
    return PubAck(str(body["stream"]), int(body["seq"]), bool(body.get("duplicate", False)))


def publish_error(error: BaseException, subject: str) -> BusError:
    """Turn what an awaited acknowledgement failed with into the publisher's error."""
    if isinstance(error, LinkLost):
        return PublishTimeout(f"the link broke before {subject} was acknowledged")
    if isinstance(error, BusError):
        return error
    return PublishTimeout(f"no acknowledgement for {subject}")


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the reply subject of a delivered message tells about it."""

    stream: str
    consumer: str
    seq: int
    consumer_seq: int
    time: datetime
    pending: int


def parse_delivery(reply: str) -> Delivery:
    """Read `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<seq>.<consumer seq>.<time>.<pending>`.

    Raises ValueError on anything else.
    """
    tokens = reply.split(".")
    if len(tokens) == 9:
        tokens[2:2] = ["_", ""]
    if len(tokens) < 11 or tokens[:2] != ["$JS", "ACK"]:
        raise ValueError(f"not a delivery: {reply!r}")
    nanoseconds = int(tokens[9])
    return Delivery(
        stream=tokens[4],
        consumer=tokens[5],
        seq=int(tokens[7]),
        consumer_seq=int(tokens[8]),
        time=datetime.fromtimestamp(nanoseconds / 1e9, tz=UTC),
        pending=int(tokens[10]),
    )
