"""Which scheduler decides: one row in SQL, renewed by its holder, checked in every deciding transaction."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import bindparam, update
from sqlmodel import Session, col

from services.scheduler.models import LeaderRow

TTL_SECONDS = 8.0
RENEW_SECONDS = 2.0
POLL_SECONDS = 0.5

_LEADER = LeaderRow.__table__  # type: ignore[attr-defined]
_FENCE = update(_LEADER).where(
    _LEADER.c.id == 1,
    _LEADER.c.epoch == bindparam("lead"),
    _LEADER.c.holder == bindparam("leader"),
)
"""Made once, and without the session's help: it is part of every decision."""


class LeadershipLost(RuntimeError):
    """Another scheduler decides now; nothing of this transaction was stored."""


@dataclass(frozen=True, slots=True)
class Leadership:
    """The right to decide, while `epoch` is the row's."""

    epoch: int
    holder: str


def this_process() -> str:
    """Return a name for this process that no other one ever has: machine boot, host, pid, start time."""
    pid = os.getpid()
    return f"{_boot_id()}/{socket.gethostname()}/{pid}/{_started(pid)}"


def acquire(session: Session, holder: str, now: float, local: bool) -> Leadership | None:
    """Take the lead if nobody has it, or its holder is late or surely dead; None otherwise.

    `now` in Unix seconds. `local`: the database is a file of this machine, so a holder of an earlier boot
    is dead too. A clock that differs between two schedulers costs time, never safety: `fence` decides.
    """
    row = session.get(LeaderRow, 1, with_for_update=True)
    if row is None:
        session.add(LeaderRow(id=1, epoch=1, holder=holder, expires=now + TTL_SECONDS))
        session.flush()
        return Leadership(1, holder)
    if row.holder != holder and row.expires > now and not is_dead(row.holder, local):
        return None
    row.epoch += 1
    row.holder = holder
    row.expires = now + TTL_SECONDS
    session.add(row)
    session.flush()
    return Leadership(row.epoch, holder)


def fence(session: Session, lead: Leadership, now: float) -> None:
    """Renew the lead within this transaction. Raises LeadershipLost when another one took it."""
    values = {"lead": lead.epoch, "leader": lead.holder, "expires": now + TTL_SECONDS}
    done = session.connection().execute(_FENCE, values)
    if done.rowcount != 1:
        raise LeadershipLost(f"epoch {lead.epoch} has ended")


def check(session: Session, lead: Leadership) -> None:
    """Make sure that the lead is still this one. Raises LeadershipLost.

    For an answer that changes no row: whoever leads after this gives every host its patience anew.
    """
    row = session.get(LeaderRow, 1)
    if row is None or (row.epoch, row.holder) != (lead.epoch, lead.holder):
        raise LeadershipLost(f"epoch {lead.epoch} has ended")


def release(session: Session, lead: Leadership) -> None:
    """Let the next one in at once."""
    session.execute(
        update(LeaderRow)
        .where(col(LeaderRow.epoch) == lead.epoch, col(LeaderRow.holder) == lead.holder)
        .values(expires=0.0)
    )


def is_dead(holder: str, local: bool) -> bool:
    """Tell whether the holder surely does not run: the same machine knows, another one cannot."""
    try:
        boot, name, pid, started = holder.split("/")
    except ValueError:
        return False
    if boot != _boot_id():
        return local and name == socket.gethostname()
    return name == socket.gethostname() and _started(int(pid)) != started


def unix() -> float:
    """Return the wall clock in Unix seconds."""
    return time.time()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _started(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot, or nothing when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The command name may hold blanks and parentheses; the fields after it do not. A zombie runs no more.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
