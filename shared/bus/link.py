"""One nats-py client from its connect to its loss: sending, answers, subscriptions, refusals.

nats-py's own reconnecting stays off. It closes for ever on some errors and sends buffered messages after it has
reported them as failed; here a lost link fails everything in flight at once, and `Connection` builds the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import ssl
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from shared.bus.port import BusConfig, BusUnavailable, MessageTooLarge, PermissionDenied
from shared.log import logger

_PERMISSION = re.compile(r'permissions violation for (publish|subscription).*?"([^"]+)"', re.I)
_UNSENT_LIMIT = 16 * 1024 * 1024
"""Bytes written but not taken by the socket; above it the link counts as stuck."""
_PENDING_MESSAGES = 65_536
_PENDING_BYTES = 64 * 1024 * 1024
PING_SECONDS = 10
UNANSWERED_PINGS = 2
"""A link that swallows everything is given up after (this + 1) pings, about 30 s."""
_BARRIER_SECONDS = 5.0
_CLOSE_SECONDS = 1.0

MessageHandler = Callable[[Msg], Awaitable[None]]


class LinkLost(BusUnavailable):
    """The link broke while an answer was awaited: whether the other side acted is unknown."""


@dataclass(eq=False, slots=True)
class Subscription:
    """A subject we listen on for as long as we want, over any number of links."""

    subject: str
    handler: MessageHandler
    queue: str = ""
    link: Link | None = None
    """The link it is attached to now."""
    live: NatsSubscription | None = None
    denied: bool = False


@dataclass(eq=False, slots=True)
class _Pending:
    subject: str
    answer: asyncio.Future[Msg]


@dataclass(eq=False)
class Link:
    """See the module; made by `Link.open`."""

    config: BusConfig
    client: Client = field(default_factory=Client)
    attached: set[Subscription] = field(default_factory=set)
    pending: dict[str, _Pending] = field(default_factory=dict)
    _inbox: str = ""
    _tokens: itertools.count[int] = field(default_factory=itertools.count)
    _lost: asyncio.Event = field(default_factory=asyncio.Event)
    _cause: Exception | None = None

    @staticmethod
    async def open(config: BusConfig) -> Link:
        """Connect once. Raises OSError, nats_errors.Error, TimeoutError or LinkLost."""
        link = Link(config)
        try:
            await link._connect()
        except nats_errors.NoServersError as error:
            await link.close()
            raise OSError(str(link._cause)) from error
        except BaseException:
            await link.close()
            raise
        return link

    @property
    def is_up(self) -> bool:
        """Tell whether a message could be sent now."""
        return not self._lost.is_set() and self.client.is_connected

    @property
    def max_payload(self) -> int:
        """Return the broker's limit in bytes, headers included."""
        return self.client.max_payload

    @property
    def server_id(self) -> str:
        """Return the id of the broker process."""
        info: dict[str, Any] = getattr(self.client, "_server_info", {})
        return str(info.get("server_id", ""))

    async def wait_lost(self) -> None:
        """Return once the link is gone."""
        # `closed_cb` comes only after the socket has closed, which a black-holed link may never do; and an
        # unexpected error ends the read loop without closing anything.
        while not self.client.is_closed:
            reading = getattr(self.client, "_reading_task", None)
            if reading is not None and reading.done():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._lost.wait()
                    return

    async def close(self) -> None:
        """Close; a socket that does not take what is buffered is cut after a second. What is in flight fails."""
        self._lost.set()
        self._fail_pending()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.client.close()
                return
        writer = getattr(getattr(self.client, "_transport", None), "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def send(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Send one message. Raises BusUnavailable when it was not sent, MessageTooLarge."""
        if not self.is_up:
            raise BusUnavailable("the broker is away")
        if self.client.pending_data_size > _UNSENT_LIMIT:
            raise BusUnavailable("the link to the broker is stuck")
        if len(data) + _header_size(headers) > self.max_payload:
            # The broker would drop the whole connection.
            raise MessageTooLarge(f"{len(data)} bytes on {subject}; {self.max_payload} are allowed")
        try:
            await self.client.publish(
                subject, data, reply=reply, headers=dict(headers) if headers else None
            )
        except nats_errors.MaxPayloadError as error:
            raise MessageTooLarge(str(error)) from error
        except (OSError, nats_errors.Error) as error:
            raise BusUnavailable(f"the broker is away: {error}") from error

    async def ask(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> asyncio.Future[Msg]:
        """Send a request and return the future of its answer; cancel it when it is no longer wanted.

        The future fails with PermissionDenied, or with LinkLost as soon as the link is gone.
        """
        token, answer = self._expect(subject)
        try:
            await self.send(subject, data, headers, reply=f"{self._inbox}.{token}")
        except BaseException:
            answer.cancel()
            raise
        return answer

    async def attach(self, subscription: Subscription) -> None:
        """Subscribe; `barrier` then tells whether the broker has refused it."""
        subscription.denied = False
        subscription.link = self
        self.attached.add(subscription)
        subscription.live = await self.client.subscribe(
            subscription.subject,
            queue=subscription.queue,
            cb=subscription.handler,
            pending_msgs_limit=_PENDING_MESSAGES,
            pending_bytes_limit=_PENDING_BYTES,
        )
        if subscription not in self.attached:
            await subscription.live.unsubscribe()

    async def detach(self, subscription: Subscription) -> None:
        """Unsubscribe; the broker knows when this returns. Harmless when the link is gone."""
        self.attached.discard(subscription)
        if subscription.live is not None and self.is_up:
            with contextlib.suppress(OSError, nats_errors.Error, TimeoutError, BusUnavailable):
                await subscription.live.unsubscribe()
                await self.barrier()

    async def barrier(self) -> None:
        """Return when the broker has handled all that was sent, and we have seen its complaints about it.

        A message to ourselves: nats-py's `flush` sends its PING ahead of what is still buffered, and when it is
        cancelled or times out, the late PONG ends the client's read loop.
        """
        token, answer = self._expect(f"{self._inbox}.*")
        try:
            await self.send(f"{self._inbox}.{token}", b"")
            async with asyncio.timeout(_BARRIER_SECONDS):
                await answer
        finally:
            answer.cancel()

    async def _connect(self) -> None:
        context = None
        if self.config.tls_ca is not None:
            context = ssl.create_default_context(cafile=str(self.config.tls_ca))
        await self.client.connect(
            self.config.url,
            name=self.config.name,
            nkeys_seed_str=self.config.seed,
            inbox_prefix=self.config.inbox_prefix,
            allow_reconnect=False,
            # Two tries without a pause; the pauses are the caller's.
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=5,
            ping_interval=PING_SECONDS,
            max_outstanding_pings=UNANSWERED_PINGS,
            pending_size=-1,
            error_cb=self._on_error,
            closed_cb=self._on_closed,
            tls=context,
        )
        self._inbox = f"{self.config.inbox_prefix}.{uuid.uuid4().hex}"
        await self.client.subscribe(f"{self._inbox}.*", cb=self._on_answer)
        await self.barrier()

    def _expect(self, subject: str) -> tuple[str, asyncio.Future[Msg]]:
        token = str(next(self._tokens))
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self.pending.pop(token, None))
        self.pending[token] = _Pending(subject, answer)
        return token, answer

    def _fail_pending(self) -> None:
        for pending in list(self.pending.values()):
            _fail(pending.answer, LinkLost("the link to the broker was lost"))

    async def _on_closed(self) -> None:
        self._lost.set()
        self._fail_pending()

    async def _on_answer(self, message: Msg) -> None:
        pending = self.pending.get(message.subject.rpartition(".")[2])
        if pending is not None and not pending.answer.done():
            pending.answer.set_result(message)

    async def _on_error(self, error: Exception) -> None:
        """Give a refusal to whoever caused it: the broker reports it apart from any request."""
        self._cause = error
        found = _PERMISSION.search(str(error))
        if found is None:
            if self.is_up and not isinstance(error, nats_errors.UnexpectedEOF | OSError):
                logger("bus").warning("bus_error", name=self.config.name, error=str(error)[:300])
            return
        kind, subject = found.group(1).lower(), found.group(2).lower()
        # nats-py has made the text lower case.
        if kind == "publish":
            for pending in list(self.pending.values()):
                if pending.subject.lower() == subject:
                    _fail(pending.answer, PermissionDenied(pending.subject))
        else:
            for subscription in self.attached:
                if subscription.subject.lower() == subject:
                    subscription.denied = True
        logger("bus").warning("bus_permission_denied", name=self.config.name, subject=subject)


def status(message: Msg) -> str | None:
    """Return the status code of a control message of the broker (`503`, `408` …), None for data."""
    if message.data or not message.headers:
        return None
    return message.headers.get("Status")


def _fail(answer: asyncio.Future[Msg], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
        # The asker may have given up already; then nobody else looks at it.
        answer.exception()


def _header_size(headers: Mapping[str, str] | None) -> int:
    if not headers:
        return 0
    return 14 + sum(len(k.encode()) + len(v.encode()) + 4 for k, v in headers.items())


__all__ = ["Link", "LinkLost", "MessageHandler", "Msg", "Subscription", "status"]
