"""Named checks: may this job run on this host now? Each answers None, or why not, with its numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from services.scheduler.core import words
from services.scheduler.core.order import Ask
from services.scheduler.core.state import Host, Shape
from services.scheduler.core.words import Why
from shared.jobs.resources import GpuInfo

HostCheck = Callable[[Ask, Host], Why | None]


@lru_cache(maxsize=4096)
def is_type(wanted: str, name: str) -> bool:
    """Tell whether a GPU's name holds the wanted type as whole words: `A10` is not in `NVIDIA A100`."""
    target = "".join(_words(wanted))
    parts = _words(name)
    return bool(target) and any(
        "".join(parts[start:end]) == target
        for start in range(len(parts))
        for end in range(start + 1, len(parts) + 1)
    )


def suits(ask: Ask, *, cuda: bool, name: str, memory_mib: int) -> bool:
    """Tell whether one GPU, or one CPU slot, can serve one of the GPUs asked for.

    A CPU slot serves a job that asks for a single GPU of no particular type, and one for several only where the job names
    the host: what needs many GPUs is hardly meant for cores. Memory is not measured there.
    """
    if not cuda:
        return ask.gpu_type is None and (ask.num_gpus == 1 or ask.pin is not None)
    if ask.gpu_type is not None and not is_type(ask.gpu_type, name):
        return False
    return memory_mib >= ask.memory_mib or memory_mib == 0


def matching(ask: Ask, shape: Shape, gpus: Sequence[GpuInfo]) -> list[GpuInfo]:
    """Return those of a host's `gpus` that suit."""
    return [g for g in gpus if suits(ask, cuda=shape.cuda, name=g.name, memory_mib=g.memory_mib)]


def agent_online(_: Ask, host: Host) -> Why | None:
    """The host's agent renews its lease."""
    return None if host.shape.online else words.pinned_offline(host.label)


def not_drained(_: Ask, host: Host) -> Why | None:
    """Nothing new starts on a drained host."""
    return words.drained(host.label) if host.drained else None


def has_room(_: Ask, host: Host) -> Why | None:
    """Every volume that runs write to has room for a new one."""
    return words.no_room(host.label, host.full) if host.full is not None else None


def is_pinned_here(ask: Ask, host: Host) -> Why | None:
    """A pinned job runs on its host only."""
    if ask.pin is None or ask.pin in (host.id, host.label):
        return None
    return words.pinned_offline(ask.pin)


def checkpoint_here(ask: Ask, host: Host) -> Why | None:
    """Every checkpoint it needs can be read here."""
    for source in ask.sources:
        if not any(host.can_read(place) for place in source):
            where = min(source)
            return words.checkpoint_on(where, "another host", "另一台主机")
    return None


def has_type(ask: Ask, host: Host) -> Why | None:
    """Some GPU of the host is of the wanted type."""
    if ask.gpu_type is None:
        return None
    names = sorted({g.name for g in host.working}) if host.shape.cuda else []
    if any(is_type(ask.gpu_type, name) for name in names):
        return None
    return words.no_such_type(ask.gpu_type, ", ".join(names))


def has_memory(ask: Ask, host: Host) -> Why | None:
    """Some GPU of the wanted type has the memory that was estimated."""
    if not host.shape.cuda or not ask.memory_mib or matching(ask, host.shape, host.working):
        return None
    return words.memory_short(ask.memory_mib, max((g.memory_mib for g in host.working), default=0))


def not_refused_lately(ask: Ask, host: Host) -> Why | None:
    """A host that refused it is not asked again for a while."""
    return words.refused(host.label) if host.id in ask.avoid else None


def enough_free(ask: Ask, host: Host) -> Why | None:
    """As many suitable GPUs as asked for are held neither by a job, nor by something foreign."""
    free = len(matching(ask, host.shape, host.free))
    return None if free >= ask.num_gpus else words.not_free(ask.num_gpus, free)


CHECKS: tuple[HostCheck, ...] = (
    agent_online,
    not_drained,
    is_pinned_here,
    checkpoint_here,
    has_type,
    has_memory,
    has_room,
    not_refused_lately,
    enough_free,
)
"""In the order in which a user would mend them."""


def check(ask: Ask, host: Host) -> Why | None:
    """Return the first thing that forbids it, or None."""
    for one in CHECKS:
        why = one(ask, host)
        if why is not None:
            return why
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
