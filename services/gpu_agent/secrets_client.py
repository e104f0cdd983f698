"""Fetches the secrets of one attempt from the api; they are held in memory only, on their way to the trainer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shared.bus.jetstream import Bus
from shared.bus.port import BusError
from shared.events import subjects
from shared.events.calls import SecretQuery, SecretReply

DEADLINE_SECONDS = 60.0
_PAUSE = 1.0


class SecretsUnavailable(RuntimeError):
    """They could not be fetched in time; the sentence says why."""


async def fetch(
    bus: Callable[[], Bus | None],
    host: str,
    job: str,
    attempt: int,
    *,
    deadline: float = DEADLINE_SECONDS,
) -> dict[str, str]:
    """Ask until the api grants them. Raises SecretsUnavailable after `deadline` seconds."""
    why = "the bus is away"
    try:
        async with asyncio.timeout(deadline):
            while True:
                connected = bus()
                if connected is not None:
                    try:
                        reply = await connected.request(
                            subjects.secret(host),
                            SecretQuery(job=job, attempt=attempt),
                            SecretReply,
                            timeout=5,
                        )
                    except BusError as error:
                        why = f"the api does not answer ({type(error).__name__})"
                    else:
                        if reply.ok:
                            return reply.values
                        why = reply.error or "the api refused"
                await asyncio.sleep(_PAUSE)
    except TimeoutError:
        raise SecretsUnavailable(why) from None
