"""A connection to the broker that never gives up: it follows link upon link and carries subscriptions over."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nats import errors as nats_errors

from shared.bus.link import Link, LinkLost, MessageHandler, Msg, Subscription, status
from shared.bus.port import (
    BusConfig,
    BusUnavailable,
    Callback,
    NoResponder,
    PermissionDenied,
    RequestTimeout,
)
from shared.log import logger

_BACKOFF_FIRST = 0.1
_BACKOFF_LAST = 5.0
_FAILURES = (OSError, nats_errors.Error, TimeoutError, BusUnavailable)
"""What opening a link may raise."""


@dataclass(eq=False)
class Connection:
    """See the module. Use `Connection.open`; every public coroutine has a deadline."""

    config: BusConfig
    generation: int = 0
    """One higher with each link; consumers made on an older one may be gone."""
    subscriptions: set[Subscription] = field(default_factory=set)
    _link: Link | None = None
    _closing: bool = False
    _callbacks: list[Callback] = field(default_factory=list)
    _listeners: set[Callable[[], None]] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _up: asyncio.Event = field(default_factory=asyncio.Event)

    @staticmethod
    async def open(config: BusConfig, timeout: float) -> Connection:
        """Connect within `timeout` seconds. Raises BusUnavailable, or PermissionDenied for a refused key."""
        connection = Connection(config)
        last: Exception | None = None
        try:
            async with asyncio.timeout(timeout):
                for delay in _backoff():
                    try:
                        await connection._relink()
                        break
                    except _FAILURES as error:
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
        return self._link is not None and self._link.is_up

    @property
    def is_closed(self) -> bool:
        """Tell whether `close` was called."""
        return self._closing

    @property
    def max_payload(self) -> int:
        """Return the broker's limit in bytes, headers included."""
        return self._link.max_payload if self._link else 1024 * 1024

    @property
    def server_id(self) -> str:
        """Return the id of the broker process; another one after each of its starts."""
        return self._link.server_id if self._link else ""

    @property
    def in_flight(self) -> int:
        """Return how many requests and publishes wait for their answer."""
        return len(self._link.pending) if self._link else 0

    async def wait_connected(self, timeout: float) -> None:
        """Wait for the link. Raises BusUnavailable after `timeout` seconds, or at once when closed."""
        if self.is_connected:
            return
        try:
            async with asyncio.timeout(max(timeout, 0)):
                while not (self.is_connected or self.is_closed):
                    await self._up.wait()
                    # A link may be lost already while the supervisor has not seen it yet.
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise BusUnavailable("the broker is away") from None
        if self.is_closed:
            raise BusUnavailable("the connection is closed")

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
        # Whoever waits for the link shall learn that there will be none.
        self._up.set()
        while self._tasks:
            # Again and again: `asyncio.wait_for` inside nats-py may swallow a cancellation (Python 3.11).
            for task in list(self._tasks):
                task.cancel()
            await asyncio.wait(self._tasks, timeout=0.5)
        if self._link is not None:
            await self._link.close()
        self._notify()

    async def send(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Send one message. Raises BusUnavailable when it was not sent, MessageTooLarge."""
        await self._current().send(subject, data, headers, reply)

    async def ask(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> asyncio.Future[Msg]:
        """Send a request and return the future of its answer (see `Link.ask`)."""
        return await self._current().ask(subject, data, headers)

    async def request(self, subject: str, data: bytes, timeout: float) -> Msg:
        """Return the first answer.

        Raises RequestTimeout, NoResponder, LinkLost, BusUnavailable (not sent), PermissionDenied.
        """
        answer = await self.ask(subject, data)
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

    def new_inbox(self) -> str:
        """Return a fresh subject below our own inbox prefix."""
        return f"{self.config.inbox_prefix}.{uuid.uuid4().hex}"

    async def subscribe(
        self, subject: str, handler: MessageHandler, queue: str = ""
    ) -> Subscription:
        """Listen on `subject` until `unsubscribe`, across links. Raises PermissionDenied."""
        subscription = Subscription(subject, handler, queue)
        self.subscriptions.add(subscription)
        link = self._link
        if link is not None and link.is_up:
            try:
                if subscription.link is not link:
                    await link.attach(subscription)
                await link.barrier()
            except _FAILURES as error:
                if link.is_up:
                    await self.unsubscribe(subscription)
                    raise BusUnavailable(f"could not subscribe to {subject}: {error}") from error
                # The next link attaches it.
        if subscription.denied:
            await self.unsubscribe(subscription)
            raise PermissionDenied(subject)
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listening; the broker knows when this returns. Harmless when the link is gone."""
        self.subscriptions.discard(subscription)
        link, subscription.link = subscription.link, None
        if link is not None:
            await link.detach(subscription)

    def _current(self) -> Link:
        if self._link is None:
            raise BusUnavailable("the broker is away")
        return self._link

    async def _relink(self) -> None:
        """Open a link and attach everything to it; raises one of _FAILURES."""
        link = await Link.open(self.config)
        try:
            # Some may be added while others are attached; nothing awaits between the last look and the switch.
            while missing := [s for s in self.subscriptions if s.link is not link]:
                for subscription in missing:
                    await link.attach(subscription)
                await link.barrier()
            if self._closing or not link.is_up:
                raise LinkLost("closed while connecting")
        except BaseException:
            await link.close()
            raise
        self._link = link
        self.generation += 1
        self._up.set()
        self._notify()

    async def _supervise(self) -> None:
        log = logger("bus")
        while not self._closing and self._link is not None:
            await self._link.wait_lost()
            if self._closing:
                return
            self._up.clear()
            await self._link.close()
            self._notify()
            log.warning("bus_link_lost", name=self.config.name)
            last = ""
            for delay in _backoff():
                if self._closing:
                    return
                try:
                    await self._relink()
                    break
                except _FAILURES as error:
                    if str(error) != last:
                        last = str(error)
                        log.warning("bus_link_refused", name=self.config.name, error=last)
                await asyncio.sleep(delay)
            log.info("bus_link_restored", name=self.config.name, generation=self.generation)
            for callback in self._callbacks:
                self._spawn(_guarded(callback))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _notify(self) -> None:
        for listener in list(self._listeners):
            listener()


def _backoff() -> Iterator[float]:
    delay = _BACKOFF_FIRST
    while True:
        yield delay
        delay = min(delay * 2, _BACKOFF_LAST)


async def _guarded(callback: Callback) -> None:
    try:
        await callback()
    except Exception as error:  # noqa: BLE001 - one callback must not stop the others
        logger("bus").warning("bus_reconnect_callback_failed", error=str(error)[:300])
