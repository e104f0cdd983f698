"""Room that jobs found missing on hosts: what is remembered of it, and whether it is there now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from services.scheduler.core import words
from services.scheduler.core.state import Host, Job, Short
from services.scheduler.core.words import Why
from shared.disk.levels import FULL_BYTES, Shortage, Volume, fullest, holding

REMEMBERED = 8
"""Hosts whose want of room a job remembers."""


def noted(job: Job, host: str, shortage: Shortage | None) -> Job:
    """Return the job, knowing that it needs room on `host`; without figures, as much as makes a volume usable."""
    path, need = (shortage.path, shortage.need) if shortage else ("", 2 * FULL_BYTES)
    others = [s for s in job.short if s.host != host]
    return replace(job, short=(*others, Short(host, path, need))[-REMEMBERED:])


def is_there(short: Short, hosts: Mapping[str, Host]) -> bool:
    """Tell whether nothing is known that speaks against the room: a host that is silent or gone decides otherwise."""
    host = hosts.get(short.host)
    if host is None or host.forgotten or host.lost or host.inventory is None:
        return True
    if not host.online:
        return False
    volume = _volume(short, host.inventory.volumes)
    return volume is None or volume.free >= short.need


def _volume(short: Short, volumes: tuple[Volume, ...]) -> Volume | None:
    return holding(short.path, volumes) if short.path else fullest(volumes)


def why(job: Job, hosts: Mapping[str, Host]) -> Why | None:
    """Return the words for the first host that this job knows to lack room, or None."""
    for short in job.short:
        host = hosts.get(short.host)
        if host is not None and host.inventory is not None and not is_there(short, hosts):
            volume = _volume(short, host.inventory.volumes)
            have = volume.free if volume else 0
            return words.lacks(host.label, Shortage(short.path or "its disk", short.need, have))
    return None


def short_of_room(job: Job, hosts: Mapping[str, Host]) -> frozenset[str]:
    """Return the hosts on which this job must not start now."""
    return frozenset(s.host for s in job.short if s.host in hosts and not is_there(s, hosts))
