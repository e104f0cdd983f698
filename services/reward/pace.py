"""The queue before one provider: who waits, in what order, and when the next call may go."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Literal

from services.reward.core import rate
from services.reward.core.rate import Rate

Priority = Literal["train", "eval"]


class Pace:
    """Lets calls go at the provider's pace, at most `concurrency` at a time; training before evaluation.

    One pump places calls one by one, so a change of pace holds for all who wait. `now`: seconds of the event loop's clock.
    """

    def __init__(self, start: Rate, concurrency: int, now: Callable[[], float]) -> None:
        self.rate = start
        self.in_flight = 0
        self._concurrency = concurrency
        self._now = now
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []
        self._number = itertools.count()
        self._pump: asyncio.Task[None] | None = None
        self._freed = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Return how many calls wait."""
        return len(self._waiting)

    async def enter(self, tokens: int, priority: Priority) -> None:
        """Wait for the turn. Whoever is cancelled while waiting leaves no gap."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (0 if priority == "train" else 1, next(self._number), tokens, turn)
        heapq.heappush(self._waiting, place)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run(), name="pace")
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # it was let go in the same moment
            raise

    def leave(self) -> None:
        """Free a place."""
        self.in_flight -= 1
        self._freed.set()

    def release(self) -> None:
        """Let everybody go who waits: the provider is not to be asked, and each will find that out by itself."""
        for _, _, _, turn in self._waiting:
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)
        self._waiting.clear()

    def answered(self, estimated: int, used: int) -> None:
        """Correct the tokens after an answer, and grow where calls wait."""
        self.rate = rate.settle(self.rate, estimated, used)
        self.rate = rate.succeeded(self.rate, self._now(), pressed=bool(self._waiting))

    def refused(self, *, burst: bool, hold_seconds: float | None) -> None:
        """Slow down; send nothing at all for as long as the provider asked, where that is long."""
        self.rate = rate.refused(self.rate, self._now(), burst=burst)
        if hold_seconds is not None and hold_seconds >= rate.HOLD_FROM_SECONDS:
            self.rate = rate.hold(self.rate, self._now(), hold_seconds)

    async def _run(self) -> None:
        while self._waiting:
            if self.in_flight >= self._concurrency:
                self._freed.clear()
                await self._freed.wait()
                continue
            _, _, tokens, turn = self._waiting[0]
            if turn.done():
                heapq.heappop(self._waiting)
                continue
            wait = rate.reserve(self.rate, self._now(), tokens)[1]
            if wait > 0:
                await asyncio.sleep(min(wait, 0.25))  # looks again: the pace may have changed
                continue
            heapq.heappop(self._waiting)
            self.rate, _ = rate.reserve(self.rate, self._now(), tokens)
            self.in_flight += 1
            turn.set_result(None)
