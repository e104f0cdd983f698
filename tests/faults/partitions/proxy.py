"""A TCP proxy that can stop forwarding in one or both directions without closing anything, drop connections, or delay."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Self

from tests.faults.partitions.cuts import Way

CHUNK = 64 * 1024
START_SECONDS = 60.0
_STALLED = {Way.BOTH: (True, True), Way.TO_BROKER: (True, False), Way.TO_AGENT: (False, True)}
_CLIENT, _SERVER = 0, 1


class StallingProxy:
    """Listens on a free loopback port in a thread of its own until `close`.

    While a direction is cut its bytes stay in the sockets' buffers, and an end of a connection is not passed on either, as on a
    link that swallows everything; after `heal` they arrive, late. A connection opened meanwhile is accepted and stays mute.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._open: list[asyncio.Event] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.delay = 0.0
        """Seconds added to each chunk."""
        self.port = 0

    def start(self) -> Self:
        self._thread.start()
        assert self._ready.wait(START_SECONDS)
        return self

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(START_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self, way: Way) -> None:
        """Forward nothing in that direction from now on."""
        self._call(lambda: self._set(*_STALLED[way]))

    def heal(self) -> None:
        """Forward again; what waited comes first."""
        self._call(lambda: self._set(False, False))

    def drop(self) -> None:
        """Cut every connection off with a reset."""

        def abort() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self._call(abort)

    def _set(self, *stalled: bool) -> None:
        for gate, stall in zip(self._open, stalled, strict=True):
            if stall:
                gate.clear()
            else:
                gate.set()

    def _call(self, work: Callable[[], None]) -> None:
        done = threading.Event()

        def go() -> None:
            try:
                work()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(go)
        assert done.wait(START_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._open = [asyncio.Event(), asyncio.Event()]
        self._set(False, False)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            for writer in list(self._writers):
                writer.transport.abort()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        pumps = [
            asyncio.create_task(self._pump(reader, far_writer, _CLIENT)),
            asyncio.create_task(self._pump(far_reader, writer, _SERVER)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.ALL_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for one in (writer, far_writer):
                self._writers.discard(one)
                one.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, side: int
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = await reader.read(CHUNK)
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._open[side].wait()
                if not data:
                    break
                writer.write(data)
                await writer.drain()
            writer.write_eof()
