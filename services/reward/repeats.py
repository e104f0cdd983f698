"""Idempotency-Key: a request that is sent again gets the first one's answer, byte for byte, for a day."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from shared.errors import conflict

KEEP_SECONDS: Final = 24 * 3600.0
KEEP_BYTES: Final = 256 * 1024**2
LONGEST_KEY: Final = 128


@dataclass(slots=True)
class _Kept:
    digest: bytes
    answer: asyncio.Future[bytes]
    until: float


class Repeats:
    """Answers by key, the oldest forgotten beyond 256 MiB; a repeat while the first still runs waits for it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0

    async def once(
        self, key: str, body: bytes, work: Callable[[], Awaitable[bytes]]
    ) -> tuple[bytes, bool]:
        """Return the answer, and whether it was there already. Raises TrainyardError 409 for another body.

        A failure is not kept: the next request with the key tries anew.
        """
        self._forget()
        digest = hashlib.sha256(body).digest()
        kept = self._kept.get(key)
        if kept is not None:
            if kept.digest != digest:
                raise conflict(
                    "idempotency_mismatch",
                    f"The Idempotency-Key {key[:50]!r} was used for another body. Use a new key for a new request.",
                    f"Idempotency-Key {key[:50]!r} 已用于另一个请求体。新请求请使用新的键。",
                )
            return await asyncio.shield(kept.answer), True
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._kept[key] = _Kept(digest, answer, self._now() + KEEP_SECONDS)
        try:
            made = await work()
        except BaseException as error:
            self._kept.pop(key, None)
            answer.set_exception(error if isinstance(error, Exception) else TimeoutError())
            answer.exception()  # those who wait raise it; nobody waiting is no defect
            raise
        self._bytes += len(made)
        answer.set_result(made)
        return made, False

    def _forget(self) -> None:
        while self._kept:
            key, kept = next(iter(self._kept.items()))
            if not kept.answer.done() or (self._bytes <= KEEP_BYTES and kept.until > self._now()):
                return
            del self._kept[key]
            self._bytes -= len(kept.answer.result())
