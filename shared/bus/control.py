"""The bucket `ctl`: desired states by key `<host>.<job>`, read by key, by prefix and as they change."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from shared.bus import wire
from shared.bus.connection import Connection
from shared.bus.link import Msg, Subscription, status
from shared.bus.port import (
    BusError,
    BusUnavailable,
    KeyHandler,
    PermissionDenied,
    PubAck,
    StreamMissing,
)
from shared.bus.streams import CONTROL_STREAM, CONTROL_SUBJECT
from shared.log import logger

HEARTBEAT_SECONDS = 3.0
SILENCE_SECONDS = 2 * HEARTBEAT_SECONDS + 1
INACTIVE_SECONDS = 10
RETRY_SECONDS = 0.5
TOMBSTONE_SECONDS = 3600
"""A deleted key leaves a mark for watchers; who was away longer sees that the key is not there."""
QUEUE = 1024


class ControlBucket:
    """Made by `Bus.control`."""

    def __init__(self, connection: Connection) -> None:
        """Do no I/O."""
        self._connection = connection

    async def put(
        self, key: str, value: BaseModel | Mapping[str, Any], timeout: float = 5.0
    ) -> PubAck:
        """Set `key`. Raises as `Bus.publish` does; repeating it is harmless."""
        if isinstance(value, BaseModel):
            body = value.model_dump_json().encode()
        else:
            body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        return await self._write(key, body, None, timeout)

    async def delete(self, key: str, timeout: float = 5.0) -> PubAck:
        """Remove `key`; removing one that is not there is harmless."""
        headers = {"KV-Operation": "DEL", "Nats-TTL": f"{TOMBSTONE_SECONDS}s"}
        return await self._write(key, b"", headers, timeout)

    async def get(self, key: str, timeout: float = 5.0) -> bytes | None:
        """Return the value, or None when there is none."""
        message = await self._connection.request(
            f"{wire.API}.DIRECT.GET.{CONTROL_STREAM}.{CONTROL_SUBJECT}.{key}", b"", timeout
        )
        if status(message) == "404":
            return None
        return _value(message)

    async def epoch(self, timeout: float = 5.0) -> str:
        """Return the epoch of the bucket; another one means that it was made anew and is empty."""
        info = await wire.stream_info(self._connection, CONTROL_STREAM, timeout)
        return wire.epoch_of(self._connection, info)

    async def entries(self, prefix: str = "", timeout: float = 5.0) -> dict[str, bytes]:
        """Return every key at or below `prefix` with its value, as of one moment.

        Raises BusUnavailable, StreamMissing, PermissionDenied.
        """
        found: dict[str, bytes] = {}
        feed = _Feed(self._connection, prefix)
        try:
            async with asyncio.timeout(timeout):
                left = await feed.start(timeout)
                while left:
                    key, value, left = await feed.next()
                    if value is None:
                        found.pop(key, None)
                    else:
                        found[key] = value
        except TimeoutError:
            raise BusUnavailable("the control bucket did not answer in time") from None
        finally:
            await feed.stop()
        return found

    async def watch(self, prefix: str, handler: KeyHandler, timeout: float = 5.0) -> Watch:
        """Call `handler` with each key at or below `prefix`, then with each change, one at a time.

        After a reconnect all keys are given again, and keys that went away meanwhile as None: handlers
        reconcile, they do not count. Returns when the first round was handled, or after `timeout` seconds when
        the broker is away (the watch goes on trying). Raises PermissionDenied.
        """
        watch = Watch(self._connection, prefix, handler)
        try:
            await watch.wait_ready(timeout)
        except PermissionDenied:
            await watch.close()
            raise
        return watch

    async def _write(
        self, key: str, body: bytes, headers: Mapping[str, str] | None, timeout: float
    ) -> PubAck:
        subject = f"{CONTROL_SUBJECT}.{key}"
        answer = await self._connection.ask(subject, body, headers)
        try:
            async with asyncio.timeout(timeout):
                message = await answer
        except (TimeoutError, BusError) as error:
            raise wire.publish_error(error, subject) from error
        finally:
            answer.cancel()
        return wire.parse_ack(message, CONTROL_STREAM)


class Watch:
    """A running watch; `close` ends it."""

    def __init__(self, connection: Connection, prefix: str, handler: KeyHandler) -> None:
        """Start the task."""
        self._connection = connection
        self._prefix = prefix
        self._handler = handler
        self._known: set[str] = set()
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"watch {prefix}")

    async def wait_ready(self, timeout: float) -> None:
        """Wait for the first round; return without it after `timeout` seconds. Raises PermissionDenied."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._first)

    async def close(self) -> None:
        """Stop watching."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while not self._connection.is_closed:
            feed = _Feed(self._connection, self._prefix)
            try:
                await self._connection.wait_connected(60)
                await self._follow(feed)
            except PermissionDenied as error:
                if not self._first.done():
                    self._first.set_exception(error)
                    return
                await asyncio.sleep(RETRY_SECONDS * 10)
            except (BusError, TimeoutError):
                await asyncio.sleep(RETRY_SECONDS)
            finally:
                await feed.stop()

    async def _follow(self, feed: _Feed) -> None:
        """Give all keys, then what changes, until the link or the consumer is gone."""
        left = await feed.start(wire.API_TIMEOUT)
        seen: set[str] = set()
        while left:
            key, value, left = await feed.next()
            seen.add(key)
            await self._give(key, value)
        for gone in sorted(self._known - seen):
            await self._give(gone, None)
        if not self._first.done():
            self._first.set_result(None)
        while True:
            key, value, _ = await feed.next()
            await self._give(key, value)

    async def _give(self, key: str, value: bytes | None) -> None:
        if value is None:
            self._known.discard(key)
        else:
            self._known.add(key)
        try:
            await self._handler(key, value)
        except Exception as error:  # noqa: BLE001 - the caller's re-read heals what one call missed
            logger("bus").warning("watch_handler_failed", key=key, error=repr(error)[:300])


class _Feed:
    """One ephemeral push consumer: the last value of each key, then what follows, in order and without gaps.

    Push, because a pull needs a permission on the consumer's name, which cannot be scoped to a host. Its filter stands
    in the subject of the create request, which can.
    """

    def __init__(self, connection: Connection, prefix: str) -> None:
        self._connection = connection
        prefix = prefix.rstrip(".")
        self._filter = f"{CONTROL_SUBJECT}.{prefix}.>" if prefix else f"{CONTROL_SUBJECT}.>"
        self._name = f"w{uuid.uuid4().hex}"
        self._queue: asyncio.Queue[Msg | None] = asyncio.Queue(maxsize=QUEUE)
        self._subscription: Subscription | None = None
        self._seq = 0
        self._left = 0

    async def start(self, timeout: float) -> int:
        """Create the consumer and return how many keys will come first."""
        inbox = self._connection.new_inbox()
        self._subscription = await self._connection.subscribe(inbox, self._queue.put)
        generation = self._connection.generation
        answer = await wire.create_consumer(
            self._connection,
            CONTROL_STREAM,
            self._name,
            (self._filter,),
            {
                "deliver_subject": inbox,
                "deliver_policy": "last_per_subject",
                "idle_heartbeat": int(HEARTBEAT_SECONDS * 1_000_000_000),
                "inactive_threshold": INACTIVE_SECONDS * 1_000_000_000,
            },
            timeout,
        )
        if generation != self._connection.generation:
            raise BusUnavailable("the link was lost meanwhile")
        self._connection.add_listener(self._on_link)
        self._left = int(answer.get("num_pending", 0)) + int(
            answer.get("delivered", {}).get("consumer_seq", 0)
        )
        return self._left

    async def next(self) -> tuple[str, bytes | None, int]:
        """Return key, value and how many of the first round are left. Raises BusUnavailable, TimeoutError."""
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                message = await self._queue.get()
            if message is None:
                raise BusUnavailable("the link to the broker was lost")
            if status(message) is not None:
                self._check_heartbeat(message)
                continue
            delivery = wire.parse_delivery(message.reply)
            self._seq += 1
            if delivery.consumer_seq != self._seq:
                raise BusUnavailable("a change was lost on the way")
            self._left = max(self._left - 1, 0)
            return message.subject.removeprefix(f"{CONTROL_SUBJECT}."), _value(message), self._left

    def _check_heartbeat(self, message: Msg) -> None:
        last = (message.headers or {}).get("Nats-Last-Consumer")
        if status(message) != "100":
            raise BusUnavailable("the consumer is gone")
        if last is not None and int(last) != self._seq:
            raise BusUnavailable("a change was lost on the way")

    async def stop(self) -> None:
        """Unsubscribe; the broker then removes the consumer by itself."""
        self._connection.remove_listener(self._on_link)
        if self._subscription is not None:
            await self._connection.unsubscribe(self._subscription)
            self._subscription = None

    def _on_link(self) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(None)


def _value(message: Msg) -> bytes | None:
    headers = message.headers or {}
    if "KV-Operation" in headers or "Nats-Marker-Reason" in headers:
        return None
    return bytes(message.data)


__all__ = ["ControlBucket", "StreamMissing", "Watch"]
