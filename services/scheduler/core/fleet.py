"""The hosts during one decision: alike hosts grouped, so that a demand is compared with groups and not with each host."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping

from services.scheduler.core import words
from services.scheduler.core.feasible import check, has_memory, has_type, matching, suits
from services.scheduler.core.order import Ask
from services.scheduler.core.rank import Cost, cost
from services.scheduler.core.state import Host, Shape
from services.scheduler.core.words import Why
from shared.jobs.resources import GpuInfo


class Fleet:
    """Free GPUs while assignments are being chosen. Local to one call of `schedule`; nothing outside sees it."""

    def __init__(self, hosts: Mapping[str, Host]) -> None:
        """Group the hosts by shape and by how many GPUs are free."""
        self.hosts = hosts
        self.kept: dict[str, str] = {}
        """Host → name of the job ahead for which its GPUs are kept."""
        self._free: dict[str, tuple[GpuInfo, ...]] = {}
        self._pools: dict[Shape, dict[int, list[str]]] = {}
        self._suitable: dict[Ask, list[tuple[Shape, bool]]] = {}
        self._labels: dict[str, list[str]] | None = None
        for host_id in sorted(hosts):
            host = hosts[host_id]
            if not host.forgotten:
                pool = self._pools.setdefault(host.shape, {})
                pool.setdefault(len(host.free), []).append(host_id)

    def free(self, host_id: str) -> tuple[GpuInfo, ...]:
        """Return what is free there now, earlier choices of this decision taken off."""
        got = self._free.get(host_id)
        return self.hosts[host_id].free if got is None else got

    def best(self, ask: Ask) -> tuple[str, tuple[GpuInfo, ...]] | None:
        """Return the best host that fits now and the GPUs to take there, or None."""
        if ask.pin is not None or ask.sources:
            options = self._bound_options(ask)
        else:
            options = self._pooled_options(ask)
        best = min(options, default=None)
        if best is None:
            return None
        host_id = best[-1]
        fitting = matching(ask, self.hosts[host_id].shape, self.free(host_id))
        fitting.sort(key=lambda g: (g.memory_used_mib, g.index))
        return host_id, tuple(sorted(fitting[: ask.num_gpus], key=lambda g: g.index))

    def take(self, host_id: str, gpus: Iterable[GpuInfo]) -> None:
        """Take GPUs off a host."""
        before = self.free(host_id)
        gone = {g.index for g in gpus}
        after = tuple(g for g in before if g.index not in gone)
        pool = self._pools[self.hosts[host_id].shape]
        pool[len(before)].remove(host_id)
        if not pool[len(before)]:
            del pool[len(before)]
        insort(pool.setdefault(len(after), []), host_id)
        self._free[host_id] = after

    def keep(self, host_id: str, name: str) -> None:
        """Close a host for every job that comes later in this decision."""
        self.kept[host_id] = name
        pool = self._pools[self.hosts[host_id].shape]
        count = len(self.free(host_id))
        pool[count].remove(host_id)
        if not pool[count]:
            del pool[count]

    def reservable(self, ask: Ask, before: str | None) -> str | None:
        """Return the host to keep for a blocked job: the one it was kept before, else the one most free.

        Only hosts that could hold the job if idle count; None where no such host is online, or all are kept.
        """
        options: list[tuple[int, Cost, str]] = []
        for host_id in self._capable(ask):
            if host_id == before:
                return host_id
            host = self.hosts[host_id]
            free = len(matching(ask, host.shape, self.free(host_id)))
            options.append((-free, cost(ask, host, free), host_id))
        return min(options)[-1] if options else None

    def why(self, ask: Ask) -> Why:
        """Return why `best` found nothing."""
        if ask.pin is not None or ask.sources:
            return self._why_bound(ask)
        shapes = [s for s in self._all_shapes() if s.online]
        if not shapes:
            return words.NO_AGENT
        shapes = [s for s in shapes if not s.drained]
        if not shapes:
            return words.ALL_DRAINED
        hosts = [h for h in self.hosts.values() if h.shape.online and not h.drained]
        unsuited = self._why_unsuited(ask, hosts)
        if unsuited is not None:
            return unsuited
        largest, refusing = 0, []
        for host in hosts:
            free = len(matching(ask, host.shape, self.free(host.id)))
            if free >= ask.num_gpus:
                if host.id in self.kept:
                    return words.kept_for(host.label, self.kept[host.id])
                if host.id in ask.avoid:
                    refusing.append(host.label)
                    continue
            largest = max(largest, free)
        if refusing:
            return words.refused(", ".join(sorted(refusing)[:3]))
        return words.not_free(ask.num_gpus, largest)

    def _why_unsuited(self, ask: Ask, hosts: list[Host]) -> Why | None:
        if ask.gpu_type is not None and all(has_type(ask, h) for h in hosts):
            names = {n for h in hosts if h.shape.cuda for n, _ in h.shape.kinds}
            return words.no_such_type(ask.gpu_type, ", ".join(sorted(names)[:4]))
        if ask.memory_mib and all(has_type(ask, h) or has_memory(ask, h) for h in hosts):
            largest = max((m for h in hosts for _, m in h.shape.kinds if h.shape.cuda), default=0)
            return words.memory_short(ask.memory_mib, largest)
        return None

    def _why_bound(self, ask: Ask) -> Why:
        candidates = self._candidates(ask)
        if not candidates:
            return self._why_nowhere(ask)
        host = self.hosts[candidates[0]]
        why = self._blocked(ask, host) or words.not_free(ask.num_gpus, len(self.free(host.id)))
        if ask.sources:
            return words.checkpoint_on(host.label, why.en, why.zh)
        return why

    def _why_nowhere(self, ask: Ask) -> Why:
        if ask.pin is not None and not self._pinned(ask.pin):
            return words.pinned_unknown(ask.pin)
        for source in ask.sources:
            place = min(source)
            if not any(h.can_read(p) for h in self.hosts.values() for p in source):
                return words.checkpoint_on(place, "not a known host", "不是已知主机")
        label = self._label(min(min(source) for source in ask.sources))
        if ask.pin is not None:
            return words.checkpoint_on(
                label, f"the job is pinned to {ask.pin}", f"任务指定了主机 {ask.pin}"
            )
        return words.checkpoint_on(label, "another lies elsewhere", "另一个检查点在别处")

    def _label(self, place: str) -> str:
        host = self.hosts.get(place)
        return host.label if host else place

    def _blocked(self, ask: Ask, host: Host) -> Why | None:
        """Return what forbids a bound job on one candidate, with this decision's own choices counted."""
        if host.id in self.kept:
            return words.kept_for(host.label, self.kept[host.id])
        why = check(ask, host)
        if why is not None:
            return why
        free = len(matching(ask, host.shape, self.free(host.id)))
        return None if free >= ask.num_gpus else words.not_free(ask.num_gpus, free)

    def _bound_options(self, ask: Ask) -> list[Cost]:
        found = []
        for host_id in self._candidates(ask):
            host = self.hosts[host_id]
            if self._blocked(ask, host) is None:
                free = len(matching(ask, host.shape, self.free(host_id)))
                found.append(cost(ask, host, free))
        return found

    def _pooled_options(self, ask: Ask) -> list[Cost]:
        found = []
        for shape, uniform in self._shapes(ask):
            option = self._tightest(ask, shape, uniform)
            if option is not None:
                found.append(option)
        return found

    def _tightest(self, ask: Ask, shape: Shape, uniform: bool) -> Cost | None:
        pool = self._pools[shape]
        for count in sorted(pool):
            if count < ask.num_gpus:
                continue
            for host_id in pool[count]:
                if host_id in ask.avoid:
                    continue
                free = count
                if not uniform:
                    free = len(matching(ask, shape, self.free(host_id)))
                    if free < ask.num_gpus:
                        continue
                return cost(ask, self.hosts[host_id], free)
        return None

    def _shapes(self, ask: Ask) -> list[tuple[Shape, bool]]:
        """Return the shapes with a suitable GPU, and whether all their GPUs are suitable."""
        known = self._suitable.get(ask)
        if known is None:
            known = []
            for shape in self._pools:
                fits = [suits(ask, cuda=shape.cuda, name=n, memory_mib=m) for n, m in shape.kinds]
                if shape.online and not shape.drained and any(fits):
                    known.append((shape, all(fits)))
            self._suitable[ask] = known
        return known

    def _capable(self, ask: Ask) -> list[str]:
        """Return hosts, not kept and not refusing, that could hold the job if idle."""
        if ask.pin is not None or ask.sources:
            named = [h for h in self._candidates(ask) if h not in self.kept]
        else:
            named = [
                host_id
                for shape, _ in self._shapes(ask)
                if shape.total >= ask.num_gpus
                for hosts in self._pools[shape].values()
                for host_id in hosts
            ]
        return [h for h in named if h not in ask.avoid and self._could_hold(ask, self.hosts[h])]

    def _could_hold(self, ask: Ask, host: Host) -> bool:
        shape = host.shape
        if not shape.online or shape.drained or shape.total < ask.num_gpus:
            return False
        return len(matching(ask, shape, host.working)) >= ask.num_gpus

    def _candidates(self, ask: Ask) -> list[str]:
        """Return the hosts that pin and checkpoints leave, newest checkpoint first."""
        names: set[str] | None = None if ask.pin is None else set(self._pinned(ask.pin))
        for source in ask.sources:
            here = set()
            for place in source:
                if place.startswith("/"):
                    here |= {h.id for h in self.hosts.values() if h.can_read(place)}
                elif place in self.hosts:
                    here.add(place)
            names = here if names is None else names & here
        known = [h for h in names or () if not self.hosts[h].forgotten]
        prefer = ask.prefer
        return sorted(
            known,
            key=lambda h: (prefer is not None and not self.hosts[h].can_read(prefer), h),
        )

    def _pinned(self, pin: str) -> list[str]:
        if self._labels is None:
            self._labels = {}
            for host in self.hosts.values():
                if not host.forgotten:
                    for name in {host.id, host.label}:
                        self._labels.setdefault(name, []).append(host.id)
        return self._labels.get(pin, [])

    def _all_shapes(self) -> list[Shape]:
        return [h.shape for h in self.hosts.values() if not h.forgotten]
