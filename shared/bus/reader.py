"""Reads a stream from a position on, over broker restarts, and says so when the stream is no longer the same.

The position lies in the reader's own database, so the consumer on the broker is a throw-away: in memory, without
acknowledgements, made again at the right place whenever anything about it is doubtful.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections import deque
from typing import Any

from shared.bus import wire
from shared.bus.connection import Connection
from shared.bus.link import Msg, Subscription, status
from shared.bus.port import BusError, BusMessage, BusUnavailable, StreamReset
from shared.log import logger

BATCH = 512
BATCH_BYTES = 8 * 1024 * 1024
PULL_SECONDS = 30
HEARTBEAT_SECONDS = 3.0
SILENCE_SECONDS = 2 * HEARTBEAT_SECONDS + 1
"""A consumer that sends neither data nor heartbeat for so long is gone."""
SETUP_SECONDS = 2.0
RETRY_SECONDS = 0.1
INACTIVE_SECONDS = 60
_PULL_DONE = {"404", "408"}


class Reader:
    """Made by `Bus.reader`; one task uses it at a time."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        after: int,
        epoch: str | None,
        subjects: tuple[str, ...],
    ) -> None:
        """Do no I/O; the consumer is made by the first `fetch`."""
        self.stream = stream
        self.epoch = epoch
        self.pending: int | None = None
        """Messages that the broker still had after the last one delivered; None before the first."""
        self._connection = connection
        self._subjects = subjects
        self._position = after
        self._inbox = connection.new_inbox()
        self._queue: deque[BusMessage] = deque()
        self._subscription: Subscription | None = None
        self._consumer: str | None = None
        self._consumer_seq = 0
        self._generation = -1
        self._outstanding = 0
        self._heard = 0.0
        self._wake = asyncio.Event()
        self._closed = False
        connection.add_listener(self._wake.set)

    async def fetch(self, max_messages: int = 256, timeout: float = 1.0) -> list[BusMessage]:
        """Return up to `max_messages`, as soon as there is one; [] when none came in `timeout` seconds.

        Raises StreamReset (open a new reader), StreamMissing, PermissionDenied, and BusUnavailable when the
        broker is away: call again later, nothing is skipped. A reader of METRICS, LOGS or SAMPLES is reset by each
        restart of the broker (see `wire.epoch_of`).
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self._queue:
            if self._closed:
                raise BusUnavailable("the reader is closed")
            self._wake.clear()
            try:
                await self._prepare(deadline)
            except BusUnavailable:
                # JetStream may answer later than the link is up; do not let the caller spin meanwhile.
                if self._connection.is_closed or loop.time() + RETRY_SECONDS >= deadline:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
                continue
            now = loop.time()
            if self._queue or now >= deadline:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(deadline, self._heard + SILENCE_SECONDS) - now):
                    await self._wake.wait()
        count = min(max_messages, len(self._queue))
        return [self._queue.popleft() for _ in range(count)]

    async def close(self) -> None:
        """Drop the consumer and the subscription."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        self._connection.remove_listener(self._wake.set)
        await self._drop_consumer()
        if self._subscription is not None:
            await self._connection.unsubscribe(self._subscription)

    async def _prepare(self, deadline: float) -> None:
        """Have a live consumer and an open pull request."""
        loop = asyncio.get_running_loop()
        await self._connection.wait_connected(deadline - loop.time())
        if self._subscription is None:
            self._subscription = await self._connection.subscribe(self._inbox, self._on_message)
        silent = self._outstanding > 0 and loop.time() - self._heard > SILENCE_SECONDS
        if self._generation != self._connection.generation or silent:
            self._consumer = None
        if self._consumer is None:
            await self._create(max(deadline - loop.time(), SETUP_SECONDS))
        if self._outstanding <= 0 and not self._queue:
            await self._pull()

    async def _create(self, timeout: float) -> None:
        generation = self._connection.generation
        name = f"r{uuid.uuid4().hex}"
        self._consumer_seq = 0
        self._outstanding = 0
        # Before the consumer exists, so that its first message is known to be its own.
        self._consumer = name
        try:
            await wire.create_consumer(
                self._connection,
                self.stream,
                name,
                self._subjects,
                {
                    "deliver_policy": "by_start_sequence",
                    "opt_start_seq": self._position + 1,
                    "inactive_threshold": INACTIVE_SECONDS * 1_000_000_000,
                },
                timeout,
            )
            # Asked after the consumer was made: had the stream been replaced in between, this tells.
            info = await wire.stream_info(self._connection, self.stream, timeout)
        except BusError:
            self._consumer = None
            raise
        state = wire.state_of(self._connection, info)
        if self.epoch is None:
            self.epoch = state.epoch
        if state.epoch != self.epoch or state.last_seq < self._position:
            await self._drop_consumer()
            raise StreamReset(self.stream, state.epoch, state.last_seq)
        if state.first_seq > self._position + 1 and self._position:
            logger("bus").info(
                "reader_skips_removed_messages",
                stream=self.stream,
                position=self._position,
                first_seq=state.first_seq,
            )
        self._generation = generation

    async def _pull(self) -> None:
        request = {
            "batch": BATCH,
            "max_bytes": BATCH_BYTES,
            "expires": PULL_SECONDS * 1_000_000_000,
            "idle_heartbeat": int(HEARTBEAT_SECONDS * 1_000_000_000),
        }
        self._outstanding = BATCH
        self._heard = asyncio.get_running_loop().time()
        await self._connection.send(
            f"{wire.API}.CONSUMER.MSG.NEXT.{self.stream}.{self._consumer}",
            json.dumps(request).encode(),
            reply=self._inbox,
        )

    async def _drop_consumer(self) -> None:
        name, self._consumer = self._consumer, None
        if name is not None and self._connection.is_connected:
            with contextlib.suppress(BusError):
                await wire.call(
                    self._connection,
                    f"CONSUMER.DELETE.{self.stream}.{name}",
                    stream=self.stream,
                    timeout=1.0,
                )

    async def _on_message(self, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        code = status(message)
        if code is not None:
            self._on_status(code, message.headers or {})
            return
        try:
            delivery = wire.parse_delivery(message.reply)
        except ValueError:
            return
        if delivery.consumer != self._consumer:
            return
        self._outstanding -= 1
        self._consumer_seq += 1
        if delivery.consumer_seq != self._consumer_seq:
            # A message was lost on the way; go back to the last one that is in hand.
            self._consumer = None
        elif delivery.seq > self._position:
            self._position = delivery.seq
            self.pending = delivery.pending
            self._queue.append(
                BusMessage(
                    subject=message.subject,
                    headers=message.headers or {},
                    data=message.data,
                    stream=self.stream,
                    seq=delivery.seq,
                    time=delivery.time,
                    epoch=self.epoch or "",
                )
            )
        self._wake.set()

    def _on_status(self, code: str, headers: dict[str, Any]) -> None:
        """Handle a control message; a pull that ended is renewed, anything odd makes a new consumer."""
        if code == "100":
            return
        description = str(headers.get("Description", "")).lower()
        self._outstanding = 0
        if (
            code not in _PULL_DONE
            and "batch completed" not in description
            and "maxbytes" not in description
        ):
            self._consumer = None
        self._wake.set()
