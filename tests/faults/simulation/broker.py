"""The broker: streams with epochs and a key-value bucket, over links that lose, repeat, delay and reorder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

from services.api.projections.main import Item as DecodedItem
from shared.bus.port import (
    BusError,
    BusMessage,
    BusUnavailable,
    PubAck,
    PublishTimeout,
    StreamReset,
)
from shared.events.base import Envelope, EventBase
from shared.events.run import MetricsBatch
from tests.faults.simulation.engine import WALL, Engine

STREAMS = ("REQUESTS", "JOBS", "RUNS", "METRICS")
VOLATILE = frozenset({"METRICS"})
"""Streams with `persist_mode` async: a restart of the broker may lose their tail, and changes their epoch."""


@dataclass
class Link:
    """One node's way to the broker and back."""

    out: bool = True
    back: bool = True


@dataclass
class Stream:
    """Messages by sequence number from 1."""

    epoch: str
    messages: list[DecodedItem] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)


@dataclass(eq=False)
class Broker:
    """`loss`: chance that a message or its answer is lost; `copies`: chance that the duplicate window was over."""

    engine: Engine
    loss: float = 0.0
    copies: float = 0.0
    delay: float = 0.0
    """Chance of a delay of seconds instead of milliseconds."""
    slow: tuple[float, float] = (0.5, 6.0)
    """Seconds of such a delay."""
    late: float = 0.0
    """Chance that a publication or a write times out and is carried out seconds later, behind what was sent after it."""
    hung_until: float = 0.0
    """Until then the store takes nothing (its disk is slow): what only passes through the broker goes on, and so do reads."""
    up: bool = True
    made: int = 0

    def __post_init__(self) -> None:
        """Make empty stores."""
        self.links: dict[str, Link] = {}
        self.numbers: dict[str, int] = {}
        """Subject of metrics → the highest number that was ever stored there."""
        self.streams: dict[str, Stream] = {}
        self.readers: dict[str, list[Callable[[], None]]] = {name: [] for name in STREAMS}
        self.watchers: dict[str, Callable[[str, bytes | None], None]] = {}
        self.reconnected: dict[str, Callable[[], None]] = {}
        self.keys: dict[str, bytes] = {}
        self.ctl_epoch = ""
        self.wipe()

    # faults

    def wipe(self) -> None:
        """Lose the whole store; every stream and the bucket are made anew."""
        self.made += 1
        self.streams = {name: Stream(f"e{self.made}") for name in STREAMS}
        self.keys = {}
        self.ctl_epoch = f"c{self.made}"

    def restart(self) -> None:
        """Come back as another process: volatile streams may have lost their tail."""
        self.up = True
        for name in VOLATILE:
            stream = self.streams[name]
            kept = self.engine.rng.randint(0, len(stream.messages))
            if kept < len(stream.messages):
                self.engine.saw("metrics were lost with the broker")
            del stream.messages[kept:]
            stream.ids.clear()
            self.made += 1
            stream.epoch = f"{stream.epoch.split('/')[0]}/{self.made}"
            # a reader stamps what it hands out with the epoch that the stream has by now
            stream.messages = [
                (replace(message, epoch=stream.epoch), envelope, event)
                for message, envelope, event in stream.messages
            ]
        self.tell_reconnected()

    def tell_reconnected(self, node: str | None = None) -> None:
        """Let clients notice that they are connected again."""
        for name in [node] if node else list(self.reconnected):
            if name in self.reconnected:
                self.reconnected[name]()
        for wakes in self.readers.values():
            for wake in wakes:
                wake()

    def latency(self) -> float:
        """Return how long one way takes."""
        rng = self.engine.rng
        if self.delay and rng.random() < self.delay:
            self.engine.saw("a message was slow")
            return rng.uniform(*self.slow)
        return rng.uniform(0.002, 0.03)

    def sends(self, node: str) -> bool:
        """Tell whether a message of `node` reaches the broker now."""
        return self.up and self.links[node].out and self._arrives()

    def hears(self, node: str) -> bool:
        """Tell whether a message of the broker reaches `node` now."""
        return self.up and self.links[node].back and self._arrives()

    def _arrives(self) -> bool:
        if self.loss and self.engine.rng.random() < self.loss:
            self.engine.saw("a message was lost")
            return False
        return True

    def _later(self, work: Callable[[], None]) -> bool:
        """Perhaps put something off for seconds; tell whether that was done."""
        rng = self.engine.rng
        if not self.late or rng.random() >= self.late:
            return False
        self.engine.saw("a write was carried out late")
        self.engine.at(self.engine.now + rng.uniform(0.5, 8.0), lambda: work() if self.up else None)
        return True

    def require(self, node: str) -> None:
        """Make sure of a round trip. Raises BusUnavailable."""
        if not self.sends(node) or not self.hears(node):
            raise BusUnavailable("no answer")

    # streams

    def publish(
        self, node: str, name: str, subject: str, event: EventBase, envelope: Envelope, msg_id: str
    ) -> PubAck | BusError:
        """Store one message, or not, and say so, or not."""
        if not self.sends(node):
            return PublishTimeout("lost on the way")
        if self.engine.now < self.hung_until:
            return PublishTimeout("the store hangs")
        if self._later(lambda: self._store(name, subject, event, envelope, msg_id)):
            return PublishTimeout("it takes too long")
        known = self._store(name, subject, event, envelope, msg_id)
        if not self.hears(node):
            self.engine.saw("an acknowledgement was lost")
            return PublishTimeout("the answer was lost")
        return PubAck(name, known)

    def _store(
        self, name: str, subject: str, event: EventBase, envelope: Envelope, msg_id: str
    ) -> int:
        stream = self.streams[name]
        key = f"{subject}:{msg_id}"
        known = stream.ids.get(key)
        if known is None or self.engine.rng.random() < self.copies:
            if known is not None:
                self.engine.saw("a message was stored twice")
            seq = len(stream.messages) + 1
            at = WALL + timedelta(seconds=self.engine.now)
            message = BusMessage(subject, {}, b"", name, seq, at, stream.epoch)
            stream.messages.append((message, envelope, event))  # type: ignore[arg-type]
            stream.ids[key] = seq
            known = seq
            if isinstance(event, MetricsBatch):
                last = event.first_seq + len(event.items) - 1
                self.numbers[subject] = max(last, self.numbers.get(subject, 0))
            for wake in self.readers[name]:
                wake()
        return known

    def epoch(self, node: str, name: str) -> str:
        """Return a stream's epoch. Raises BusUnavailable."""
        self.require(node)
        return self.streams[name].epoch

    def fetch(
        self, node: str, name: str, epoch: str | None, after: int, limit: int = 128
    ) -> list[DecodedItem]:
        """Return messages behind `after`. Raises BusUnavailable, StreamReset."""
        self.require(node)
        stream = self.streams[name]
        last = len(stream.messages)
        if (epoch and epoch != stream.epoch) or last < after:
            raise StreamReset(name, stream.epoch, last)
        return stream.messages[after : after + limit]

    # the bucket

    def put(self, node: str, key: str, value: bytes | None) -> None:
        """Write or delete a key. Raises BusUnavailable, and then it may have happened all the same."""
        if not self.sends(node):
            raise BusUnavailable("lost on the way")
        if self.engine.now < self.hung_until:
            raise BusUnavailable("the store hangs")
        if self._later(lambda: self._write(key, value)):
            raise BusUnavailable("it takes too long")
        self._write(key, value)
        if not self.hears(node):
            raise BusUnavailable("the answer was lost")

    def _write(self, key: str, value: bytes | None) -> None:
        if value is None:
            self.keys.pop(key, None)
        else:
            self.keys[key] = value
        host = key.partition(".")[0]
        watcher = self.watchers.get(host)
        if watcher is not None and self.hears(host):
            watcher(key, value)

    def entries(self, node: str, prefix: str) -> dict[str, bytes]:
        """Return keys and values. Raises BusUnavailable."""
        self.require(node)
        return {k: v for k, v in self.keys.items() if k.startswith(prefix)}

    # request and reply

    def send(self, node: str, work: Callable[[], None]) -> None:
        """Carry a request or reply of `node` to the broker and on; it may be lost, late, or overtaken."""
        if self.sends(node):
            self.engine.at(self.engine.now + self.latency(), work)
