"""Takes out of REQUESTS what is committed: a stream that refuses new messages when it is full must not fill with old ones."""

from __future__ import annotations

from services.scheduler import store
from shared.bus import Bus
from shared.db import Database

STREAM = "REQUESTS"


async def purge_applied(bus: Bus, database: Database) -> int:
    """Remove the requests up to the position that is on disk, and return that position; 0 when there was nothing to do.

    Never more: the position is read from the database, not from memory, and counts only for the life of the stream it
    was stored for. Should the stream be made anew between the look and the purge, the api publishes unanswered
    requests again. Raises BusError, DatabaseBusy.
    """
    at = await database.read(lambda session: store.position(session, STREAM))
    state = await bus.stream_state(STREAM)
    if at.epoch != state.epoch or not state.messages or at.last_seq < state.first_seq:
        return 0
    await bus.purge_upto(STREAM, at.last_seq)
    return at.last_seq
