"""A connection to the broker that never gives up: it rebuilds the client, its subscriptions and its reply inbox.

nats-py's own reconnecting stays off. It closes for ever on some errors and sends buffered messages after it
has reported them as failed, so each loss of the link gets a new client here, and everything in flight fails at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import ssl
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from shared.bus.port import (
    BusConfig,
    BusUnavailable,
    Callback,
    MessageTooLarge,
    NoResponder,
    PermissionDenied,
    RequestTimeout,
)
from shared.log import logger

_PERMISSION = re.compile(r'permissions violation for (publish|subscription).*?"([^"]+)"', re.I)
_BACKOFF_FIRST = 0.1
_BACKOFF_LAST = 5.0
_UNSENT_LIMIT = 16 * 1024 * 1024
"""Bytes written but not taken by the socket; above it the link counts as stuck."""
PENDING_MESSAGES = 65_536
PENDING_BYTES = 64 * 1024 * 1024

MessageHandler = Callable[[Msg], Awaitable[None]]


class LinkLost(BusUnavailable):
    """The link broke while an answer was awaited: whether the other side acted is unknown."""


@dataclass(eq=False, slots=True)
class Subscription:
    """A subject we listen on for as long as we want, over any number of links."""

    subject: str
    handler: MessageHandler
    queue: str = ""
    live: NatsSubscription | None = None
    client: Client | None = None
    denied: bool = False


@dataclass(eq=False, slots=True)
class _Pending:
    subject: str
    answer: asyncio.Future[Msg]


@dataclass(eq=False)
class Connection:
    """See the module. Use `Connection.open`; every public coroutine has a deadline."""

    config: BusConfig
    generation: int = 0
    """One higher with each link; consumers made on an older one may be gone."""
    _client: Client | None = None
    _closing: bool = False
    _inbox: str = ""
    _subscriptions: set[Subscription] = field(default_factory=set)
    _pending: dict[str, _Pending] = field(default_factory=dict)
    _tokens: itertools.count[int] = field(default_factory=itertools.count)
    _callbacks: list[Callback] = field(default_factory=list)
    _listeners: set[Callable[[], None]] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _up: asyncio.Event = field(default_factory=asyncio.Event)
    _down: asyncio.Event = field(default_factory=asyncio.Event)

    @staticmethod
    async def open(config: BusConfig, timeout: float) -> Connection:
        """Connect within `timeout` seconds. Raises BusUnavailable, or PermissionDenied for a refused key."""
        connection = Connection(config)
        last: Exception | None = None
        try:
            async with asyncio.timeout(timeout):
                for delay in _backoff():
                    try:
                        await connection._link()
                        break
                    except (OSError, nats_errors.Error, TimeoutError) as error:
                        last = error
                    await asyncio.sleep(delay)
        except TimeoutError:
            if "authorization" in str(last).lower():
                raise PermissionDenied("CONNECT") from last
            raise BusUnavailable(f"no broker at {config.url}: {last or 'timeout'}") from last
        connection._spawn(connection._supervise())
        return connection

    @property
    def is_connected(self) -> bool:
        """Tell whether a message could be sent now."""
        return self._up.is_set() and self._client is not None and self._client.is_connected

    @property
    def max_payload(self) -> int:
        """Return the broker's limit in bytes, headers included."""
        return self._client.max_payload if self._client else 1024 * 1024

    @property
    def server_id(self) -> str:
        """Return the id of the broker process."""
        info: dict[str, Any] = getattr(self._client, "_server_info", {})
        return str(info.get("server_id", ""))

    async def wait_connected(self, timeout: float) -> None:
        """Wait for the link. Raises BusUnavailable after `timeout` seconds."""
        if self.is_connected:
            return
        try:
            async with asyncio.timeout(max(timeout, 0)):
                await self._up.wait()
        except TimeoutError:
            raise BusUnavailable("the broker is away") from None

    def on_reconnect(self, callback: Callback) -> None:
        """Call `callback` in a task of its own after each reconnect."""
        self._callbacks.append(callback)

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` at once when the link comes or goes."""
        self._listeners.add(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Forget a listener."""
        self._listeners.discard(listener)

    async def close(self) -> None:
        """Close for good; what is in flight fails."""
        self._closing = True
        self._up.clear()
        while self._tasks:
            # Again and again: `asyncio.wait_for` inside nats-py may swallow a cancellation (Python 3.11).
            for task in list(self._tasks):
                task.cancel()
            await asyncio.wait(self._tasks, timeout=0.5)
        client, self._client = self._client, None
        if client is not None:
            await _discard(client)
        self._fail_pending()
        self._notify()

    # sending

    async def send(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Send one message. Raises BusUnavailable when it was not sent, MessageTooLarge."""
        client = self._client
        if client is None or not self._up.is_set():
            raise BusUnavailable("the broker is away")
        if client.pending_data_size > _UNSENT_LIMIT:
            raise BusUnavailable("the link to the broker is stuck")
        if len(data) + _header_size(headers) > client.max_payload:
            # The server would drop the whole connection.
            raise MessageTooLarge(
                f"{len(data)} bytes on {subject}; {client.max_payload} are allowed"
            )
        try:
            await client.publish(
                subject, data, reply=reply, headers=dict(headers) if headers else None
            )
        except nats_errors.MaxPayloadError as error:
            raise MessageTooLarge(str(error)) from error
        except (OSError, nats_errors.Error) as error:
            raise BusUnavailable(f"the broker is away: {error}") from error

    async def ask(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> asyncio.Future[Msg]:
        """Send a request and return the future of its answer; release it with `forget`.

        The future fails with PermissionDenied, or with LinkLost as soon as the link is gone.
        """
        token = str(next(self._tokens))
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._pending.pop(token, None))
        self._pending[token] = _Pending(subject, answer)
        try:
            await self.send(subject, data, headers, reply=f"{self._inbox}.{token}")
        except BaseException:
            answer.cancel()
            raise
        return answer

    async def request(
        self,
        subject: str,
        data: bytes,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> Msg:
        """Return the first answer. Raises RequestTimeout, NoResponder, LinkLost, BusUnavailable, PermissionDenied."""
        answer = await self.ask(subject, data, headers)
        try:
            async with asyncio.timeout(timeout):
                message = await answer
        except TimeoutError:
            raise RequestTimeout(f"no answer on {subject} in {timeout:g} s") from None
        finally:
            answer.cancel()
        if status(message) == "503":
            raise NoResponder(f"nobody answers on {subject}")
        return message

    # receiving

    def new_inbox(self) -> str:
        """Return a fresh subject below our own inbox prefix."""
        return f"{self.config.inbox_prefix}.{uuid.uuid4().hex}"

    async def subscribe(
        self, subject: str, handler: MessageHandler, queue: str = ""
    ) -> Subscription:
        """Listen on `subject` until `unsubscribe`, across links. Raises PermissionDenied."""
        subscription = Subscription(subject, handler, queue)
        self._subscriptions.add(subscription)
        client = self._client
        if client is not None and self.is_connected:
            try:
                if subscription.client is not client:
                    await self._attach(client, subscription)
                await self._barrier(client)
            except (OSError, nats_errors.Error, TimeoutError, LinkLost) as error:
                if self.is_connected:
                    self._subscriptions.discard(subscription)
                    raise BusUnavailable(f"could not subscribe to {subject}: {error}") from error
        if subscription.denied:
            await self.unsubscribe(subscription)
            raise PermissionDenied(subject)
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listening; the broker knows when this returns. Harmless when the link is gone."""
        self._subscriptions.discard(subscription)
        live, subscription.live = subscription.live, None
        client = subscription.client
        if live is not None and client is not None and client.is_connected:
            with contextlib.suppress(OSError, nats_errors.Error, TimeoutError, LinkLost):
                await live.unsubscribe()
                await self._barrier(client)

    # the life of a link

    async def _link(self) -> None:
        """Build a client, its reply inbox and all subscriptions; raise whatever goes wrong."""
        context = None
        if self.config.tls_ca is not None:
            context = ssl.create_default_context(cafile=str(self.config.tls_ca))
        self._down = down = asyncio.Event()
        client = Client()
        cause: Exception | None = None

        async def closed() -> None:
            down.set()

        async def failed(error: Exception) -> None:
            nonlocal cause
            cause = error
            self._on_error(error)

        try:
            await client.connect(
                self.config.url,
                name=self.config.name,
                nkeys_seed_str=self.config.seed,
                inbox_prefix=self.config.inbox_prefix,
                allow_reconnect=False,
                # Two tries without a pause; the pauses are ours.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=5,
                ping_interval=10,
                max_outstanding_pings=2,
                pending_size=-1,
                error_cb=failed,
                closed_cb=closed,
                tls=context,
            )
            self._inbox = self.new_inbox()
            await client.subscribe(f"{self._inbox}.*", cb=self._on_answer)
            await self._barrier(client)
            # Some may be added while others are attached; nothing awaits between the last look and `_up`.
            while missing := [s for s in self._subscriptions if s.client is not client]:
                for subscription in missing:
                    await self._attach(client, subscription)
                await self._barrier(client)
            if not client.is_connected:
                raise nats_errors.ConnectionClosedError
        except nats_errors.NoServersError as error:
            await _discard(client)
            raise OSError(str(cause)) from error
        except BaseException:
            await _discard(client)
            raise
        if self._closing:
            await _discard(client)
            return
        self._client = client
        self.generation += 1
        self._up.set()
        self._notify()

    async def _attach(self, client: Client, subscription: Subscription) -> None:
        subscription.denied = False
        subscription.client = client
        subscription.live = await client.subscribe(
            subscription.subject,
            queue=subscription.queue,
            cb=subscription.handler,
            pending_msgs_limit=PENDING_MESSAGES,
            pending_bytes_limit=PENDING_BYTES,
        )
        if subscription not in self._subscriptions:
            await subscription.live.unsubscribe()

    async def _barrier(self, client: Client) -> None:
        """Return when the broker has handled all that was sent, and we have seen its complaints about it.

        A message to ourselves: nats-py's `flush` sends its PING ahead of what is still buffered, and when it is
        cancelled or times out, the late PONG ends the client's read loop.
        """
        token = str(next(self._tokens))
        subject = f"{self._inbox}.{token}"
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._pending.pop(token, None))
        self._pending[token] = _Pending(subject, answer)
        try:
            await client.publish(subject, b"")
            async with asyncio.timeout(5):
                await answer
        finally:
            answer.cancel()

    async def _supervise(self) -> None:
        log = logger("bus")
        while not self._closing:
            await self._wait_lost()
            self._up.clear()
            self._fail_pending()
            self._notify()
            log.warning("bus_link_lost", name=self.config.name)
            if self._client is not None:
                await _discard(self._client)
            last = ""
            for delay in _backoff():
                if self._closing:
                    return
                try:
                    await self._link()
                    break
                except (OSError, nats_errors.Error, TimeoutError) as error:
                    if str(error) != last:
                        last = str(error)
                        log.warning("bus_link_refused", name=self.config.name, error=last)
                await asyncio.sleep(delay)
            log.info("bus_link_restored", name=self.config.name, generation=self.generation)
            for callback in self._callbacks:
                self._spawn(_guarded(callback))

    async def _wait_lost(self) -> None:
        # `closed_cb` comes only after the socket has closed, which a black-holed link may never do; and an
        # unexpected error ends the read loop without closing anything.
        while self._client is not None and not self._client.is_closed:
            reading = getattr(self._client, "_reading_task", None)
            if reading is not None and reading.done():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._down.wait()
                    return

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _notify(self) -> None:
        for listener in list(self._listeners):
            listener()

    def _fail_pending(self) -> None:
        for pending in list(self._pending.values()):
            if not pending.answer.done():
                pending.answer.set_exception(LinkLost("the link to the broker was lost"))
                # The asker may have given up already; then nobody reads this exception.
                pending.answer.exception()

    async def _on_answer(self, message: Msg) -> None:
        pending = self._pending.get(message.subject.rpartition(".")[2])
        if pending is not None and not pending.answer.done():
            pending.answer.set_result(message)

    def _on_error(self, error: Exception) -> None:
        """Give a permission violation to whoever caused it: the broker reports it apart from any request."""
        found = _PERMISSION.search(str(error))
        if found is None:
            if self._up.is_set() and not isinstance(error, (nats_errors.UnexpectedEOF, OSError)):
                logger("bus").warning("bus_error", name=self.config.name, error=str(error)[:300])
            return
        kind, subject = found.group(1).lower(), found.group(2).lower()
        if kind == "publish":
            for pending in list(self._pending.values()):
                if pending.subject.lower() == subject and not pending.answer.done():
                    pending.answer.set_exception(PermissionDenied(pending.subject))
                    pending.answer.exception()
        else:
            for subscription in self._subscriptions:
                if subscription.subject.lower() == subject:
                    subscription.denied = True
        logger("bus").warning("bus_permission_denied", name=self.config.name, subject=subject)


def status(message: Msg) -> str | None:
    """Return the status code of a control message of the broker (`503`, `408` …), None for data."""
    if message.data or not message.headers:
        return None
    return message.headers.get("Status")


def _header_size(headers: Mapping[str, str] | None) -> int:
    if not headers:
        return 0
    return 14 + sum(len(k.encode()) + len(v.encode()) + 4 for k, v in headers.items())


def _backoff() -> Iterator[float]:
    delay = _BACKOFF_FIRST
    while True:
        yield delay
        delay = min(delay * 2, _BACKOFF_LAST)


async def _discard(client: Client) -> None:
    """Close a client; a socket that does not take what is buffered is cut after a second."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(1):
            await client.close()
            return
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


async def _guarded(callback: Callback) -> None:
    try:
        await callback()
    except Exception as error:  # noqa: BLE001 - one callback must not stop the others
        logger("bus").warning("bus_reconnect_callback_failed", error=str(error)[:300])


__all__ = ["Connection", "LinkLost", "Msg", "Subscription", "status"]
