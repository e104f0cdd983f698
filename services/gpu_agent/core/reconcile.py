"""What to do about the difference between what the scheduler wants and what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared.events.calls import ControlEntry


class Phase(StrEnum):
    """An attempt on this host."""

    NEW = "new"
    """Its folder is there, no process was ever started for it."""
    ALIVE = "alive"
    """It is being started, or a lock is held."""
    GONE = "gone"
    """Nothing of it lives and its last fact is not written yet."""
    ENDED = "ended"
    """Its last fact is on disk."""


@dataclass(frozen=True, slots=True)
class RunView:
    """One attempt as it is on disk now."""

    job: str
    attempt: int
    phase: Phase
    stopping: str | None = None
    """Mode of the stop that is under way."""
    collected: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Begin the attempt that the entry names."""

    entry: ControlEntry


@dataclass(frozen=True, slots=True)
class Stop:
    """End what runs, with a checkpoint if it manages in `grace` seconds."""

    job: str
    attempt: int
    mode: str
    grace: float


@dataclass(frozen=True, slots=True)
class EndUnstarted:
    """Say that an attempt ended which never began."""

    job: str
    attempt: int
    mode: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Say that this host does not take the attempt."""

    entry: ControlEntry


@dataclass(frozen=True, slots=True)
class Collect:
    """Remove the files of a deleted job."""

    entry: ControlEntry


Action = Start | Stop | EndUnstarted | Refuse | Collect
COLLECT_GRACE = 10.0
HASTE_GRACE = 10.0
"""What is left to a run that is being stopped for another reason (a pause saves a checkpoint) once nobody wants it."""


def reconcile(
    entries: Mapping[str, ControlEntry],
    runs: Sequence[RunView],
    *,
    complete: bool,
    accepting: bool,
) -> tuple[Action, ...]:
    """Return what to do now; doing it and calling again ends in no actions.

    `entries` by job; `complete`: the scheduler has written all of them for the present epoch, so that an absent one
    means that the run is not wanted; `accepting`: the host takes new work (it is not drained).
    """
    by_job: dict[str, list[RunView]] = {}
    for run in runs:
        by_job.setdefault(run.job, []).append(run)
    actions: list[Action] = []
    for job in sorted({*entries, *by_job}):
        entry = entries.get(job)
        mine = sorted(by_job.get(job, []), key=lambda r: r.attempt)
        if entry is not None:
            actions += _wanted(entry, mine, accepting)
        elif complete:
            actions += _unwanted(mine)
    return tuple(actions)


def _wanted(entry: ControlEntry, mine: list[RunView], accepting: bool) -> list[Action]:
    if entry.desired == "collect":
        return _collect(entry, mine)
    if any(r.attempt > entry.attempt for r in mine):
        return []  # the entry is older than what this host has seen: an attempt number never goes back
    stale = [r for r in mine if r.attempt < entry.attempt]
    actions = _unwanted(stale)
    own = next((r for r in mine if r.attempt == entry.attempt), None)
    if entry.desired == "run":
        busy = any(r.phase in (Phase.ALIVE, Phase.GONE) for r in stale)
        if not busy and (own is None or own.phase is Phase.NEW):
            actions.append(Start(entry) if accepting else Refuse(entry))
        return actions
    mode = entry.stop_mode or ("pause" if entry.desired == "pause" else "cancel")
    if own is None or own.phase is Phase.NEW:
        actions.append(EndUnstarted(entry.job, entry.attempt, mode))
    elif own.phase is Phase.ALIVE and own.stopping != mode:
        hurried = own.stopping is not None and mode == "cancel"
        grace = min(entry.grace_seconds, HASTE_GRACE) if hurried else entry.grace_seconds
        actions.append(Stop(entry.job, entry.attempt, mode, grace))
    return actions


def _unwanted(runs: list[RunView]) -> list[Action]:
    actions: list[Action] = []
    for run in runs:
        if run.phase is Phase.ALIVE and run.stopping is None:
            actions.append(Stop(run.job, run.attempt, "requeue", 60.0))
        elif run.phase is Phase.NEW:
            actions.append(EndUnstarted(run.job, run.attempt, "requeue"))
    return actions


def _collect(entry: ControlEntry, mine: list[RunView]) -> list[Action]:
    alive = [r for r in mine if r.phase is Phase.ALIVE]
    if alive:
        return [
            Stop(r.job, r.attempt, "cancel", min(entry.grace_seconds, COLLECT_GRACE))
            for r in alive
            if r.stopping != "cancel"
        ]
    if any(r.phase is Phase.GONE for r in mine) or any(r.collected for r in mine):
        return []
    return [Collect(entry)]
