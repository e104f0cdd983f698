"""Keeps REQUESTS from filling up with what is committed: full, it would refuse new requests.

While there is room the old ones stay: a database that was restored from a backup takes back from them what was
asked for since.
"""

from __future__ import annotations

from services.scheduler import store
from services.scheduler.core.retention import removable
from shared.bus import Bus
from shared.db import Database

STREAM = "REQUESTS"


async def purge_applied(bus: Bus, database: Database) -> int:
    """Remove applied requests where the stream is too full, and return up to which; 0 when there was nothing to do.

    Never more than what is applied: the position is read from the database, not from memory, and counts only for the
    life of the stream it was stored for. Should the stream be made anew between the look and the purge, the api
    publishes unanswered requests again. Raises BusError, DatabaseBusy.
    """
    at = await database.read(lambda session: store.position(session, STREAM))
    state = await bus.stream_state(STREAM)
    if at.epoch != state.epoch or not state.messages or at.last_seq < state.first_seq:
        return 0
    last = removable(at.last_seq, state.first_seq, state.last_seq, state.bytes, state.max_bytes)
    if last:
        await bus.purge_upto(STREAM, last)
    return last
