"""The bus: publish, read, ask and serve, with typed errors and a deadline on every call."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from shared.bus import wire
from shared.bus.connection import Connection
from shared.bus.control import ControlBucket
from shared.bus.link import Msg, Subscription
from shared.bus.port import (
    BusConfig,
    BusError,
    Callback,
    Listen,
    PubAck,
    PublishTimeout,
    Serve,
    StreamState,
)
from shared.bus.reader import Reader
from shared.bus.streams import SPECS, stream_of
from shared.events import encode
from shared.events.base import Envelope, EventBase
from shared.log import logger

R = TypeVar("R", bound=BaseModel)
Item = tuple[str, EventBase, Envelope, str]
"""Subject, event, envelope, message id."""
WINDOW = 512
"""Publishes that wait for their acknowledgement at once; the broker refuses a stream's 10,001st."""
SERVED_AT_ONCE = 64


class Bus:
    """One connection to the broker, kept for the life of a service."""

    def __init__(self, connection: Connection) -> None:
        """Wrap an open connection; use `Bus.connect`."""
        self.connection = connection

    @staticmethod
    async def connect(config: BusConfig, timeout: float = 10) -> Bus:
        """Connect within `timeout` seconds; from then on it reconnects by itself, for ever.

        Raises BusUnavailable, or PermissionDenied when the broker does not know the key.
        """
        return Bus(await Connection.open(config, timeout))

    @property
    def is_connected(self) -> bool:
        """Tell whether the link is up."""
        return self.connection.is_connected

    def on_reconnect(self, callback: Callback) -> None:
        """Call `callback` after each reconnect, in a task of its own; its errors are logged."""
        self.connection.on_reconnect(callback)

    async def close(self) -> None:
        """Close the link; readers, watches and services on it end."""
        await self.connection.close()

    async def publish(
        self,
        subject: str,
        event: EventBase,
        envelope: Envelope,
        *,
        msg_id: str,
        timeout: float = 5,
    ) -> PubAck:
        """Store one event and return its place.

        `msg_id` makes a repeat harmless within the stream's duplicate window. Raises BusUnavailable (not sent),
        PublishTimeout (outcome unknown: repeat with the same id), PermissionDenied, StreamFull, StreamMissing,
        MessageTooLarge.
        """
        (result,) = await self.publish_many([(subject, event, envelope, msg_id)], timeout)
        if isinstance(result, BusError):
            raise result
        return result

    async def publish_many(
        self, items: Sequence[Item], timeout: float = 10
    ) -> list[PubAck | BusError]:
        """Store events in the given order, pipelined; one result for each, errors as values.

        A failed item does not stop those behind it. `timeout` (seconds) covers the whole call.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        results: list[PubAck | BusError] = []
        waiting: deque[tuple[str, asyncio.Future[Msg] | BusError]] = deque()
        try:
            for item in items:
                if len(waiting) >= WINDOW:
                    results.append(await _settle(*waiting.popleft(), deadline))
                waiting.append((item[0], await self._send(item)))
            while waiting:
                results.append(await _settle(*waiting.popleft(), deadline))
        finally:
            for _, answer in waiting:
                if isinstance(answer, asyncio.Future):
                    answer.cancel()
        return results

    async def _send(self, item: Item) -> asyncio.Future[Msg] | BusError:
        subject, event, envelope, msg_id = item
        headers, data = encode(event, envelope)
        # The broker compares ids over all subjects of a stream.
        headers["Nats-Msg-Id"] = f"{subject}:{msg_id}"
        try:
            return await self.connection.ask(subject, data, headers)
        except BusError as error:
            return error

    async def stream_state(self, stream: str, timeout: float = 5) -> StreamState:
        """Return epoch and bounds of `stream`. Raises StreamMissing, BusUnavailable, PermissionDenied."""
        info = await wire.stream_info(self.connection, stream, timeout)
        return wire.state_of(self.connection, info)

    async def reader(
        self,
        stream: str,
        *,
        after: int,
        epoch: str | None,
        subjects: tuple[str, ...] | None = None,
    ) -> Reader:
        """Return a reader of the messages behind `after` in the stream of `epoch` (None: of whatever is there).

        It does no I/O; everything that can go wrong is raised by its `fetch`.
        """
        return Reader(self.connection, stream, after, epoch, subjects or SPECS[stream].subjects)

    async def purge_upto(self, stream: str, seq: int, timeout: float = 5) -> None:
        """Remove everything up to and including `seq` (the owner has stored it)."""
        await wire.call(
            self.connection,
            f"STREAM.PURGE.{stream}",
            {"seq": seq + 1},
            stream=stream,
            timeout=timeout,
        )

    async def request(
        self, subject: str, event: EventBase, reply_type: type[R], timeout: float = 3
    ) -> R:
        """Ask and return the answer. Raises NoResponder, RequestTimeout, BusUnavailable, PermissionDenied.

        An answer that is not a `reply_type` raises BusError.
        """
        message = await self.connection.request(subject, event.model_dump_json().encode(), timeout)
        try:
            return reply_type.model_validate_json(message.data)
        except ValidationError as error:
            raise BusError(f"bad answer on {subject}: {str(error)[:200]}") from error

    async def serve(self, pattern: str, handler: Serve, queue: str = "") -> Served:
        """Answer requests on `pattern`, at most 64 at once; a handler that raises leaves its caller without answer.

        With the same `queue` name several servers share the requests. Raises PermissionDenied.
        """
        served = Served(self.connection, handler)
        await served.start(pattern, queue)
        return served

    async def listen(self, pattern: str, handler: Listen) -> Served:
        """Hear messages on `pattern` while connected, without storage or answer; what is missed is missed."""

        async def hear(subject: str, data: bytes) -> None:
            await handler(subject, data)

        served = Served(self.connection, hear, answers=False)
        await served.start(pattern, "")
        return served

    def control(self) -> ControlBucket:
        """Return the bucket of desired states."""
        return ControlBucket(self.connection)


class Served:
    """A running service or listener; `close` ends it."""

    def __init__(self, connection: Connection, handler: Serve, *, answers: bool = True) -> None:
        """Do no I/O."""
        self._connection = connection
        self._handler = handler
        self._answers = answers
        self._slots = asyncio.Semaphore(SERVED_AT_ONCE if answers else 1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None

    async def start(self, pattern: str, queue: str) -> None:
        """Subscribe. Raises PermissionDenied."""
        self._subscription = await self._connection.subscribe(pattern, self._on_message, queue)

    async def close(self) -> None:
        """Unsubscribe and cancel what is being answered."""
        if self._subscription is not None:
            await self._connection.unsubscribe(self._subscription)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _on_message(self, message: Msg) -> None:
        # Waiting here holds back the subscription's own bounded queue.
        await self._slots.acquire()
        task = asyncio.get_running_loop().create_task(self._handle(message))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()

    async def _handle(self, message: Msg) -> None:
        log = logger("bus")
        if self._answers and not message.reply.startswith("_INBOX."):
            # Answering elsewhere would let the caller write, with our rights, where it may not.
            log.warning("request_without_inbox", subject=message.subject)
            return
        try:
            answer = await self._handler(message.subject, message.data)
        except ValueError as error:
            log.warning("bad_request", subject=message.subject, error=str(error)[:300])
            return
        except Exception as error:  # noqa: BLE001 - one bad request must not end the service
            log.error("handler_failed", subject=message.subject, error=repr(error)[:300])
            return
        if answer is not None and self._answers:
            with contextlib.suppress(BusError):
                await self._connection.send(message.reply, answer.model_dump_json().encode())


async def _settle(
    subject: str, answer: asyncio.Future[Msg] | BusError, deadline: float
) -> PubAck | BusError:
    if isinstance(answer, BusError):
        return answer
    try:
        async with asyncio.timeout_at(deadline):
            message = await answer
        return wire.parse_ack(message, stream_of(subject))
    except BusError as error:
        return wire.publish_error(error, subject)
    except TimeoutError:
        return PublishTimeout(f"no acknowledgement for {subject}")
    finally:
        answer.cancel()


__all__ = ["Bus", "Served"]
