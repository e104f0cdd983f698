"""The hosts during one decision: alike hosts grouped, so that a demand is compared with groups and not with each host."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping

from services.scheduler.core import words
from services.scheduler.core.feasible import check, is_type, matching, suits
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
        known = before is not None and before in self.hosts and before not in self.kept
        if before is not None and known and self._could_hold(ask, before):
            return before
        options: list[tuple[int, Cost]] = []
        for host_id in self._most_free(ask):
            host = self.hosts[host_id]
            free = len(matching(ask, host.shape, self.free(host_id)))
            options.append((-free, cost(ask, host, free)))
        return min(options)[-1][-1] if options else None

    def why(self, ask: Ask) -> Why:
        """Return why `best` found nothing."""
        if ask.pin is not None or ask.sources:
            return self._why_bound(ask)
        shapes = [s for s in self._pools if s.online]
        if not shapes:
            return words.NO_AGENT
        shapes = [s for s in shapes if not s.drained]
        if not shapes:
            return words.ALL_DRAINED
        roomy = [s for s in shapes if not s.full]
        if not roomy:
            return self._why_full(shapes)
        shapes = roomy
        unsuited = _why_unsuited(ask, shapes)
        if unsuited is not None:
            return unsuited
        for host_id, ahead in self.kept.items():
            if self._fits_now(ask, host_id):
                return words.kept_for(self.hosts[host_id].label, ahead)
        refusing = [self.hosts[h].label for h in ask.avoid if self._fits_now(ask, h)]
        if refusing:
            return words.refused(", ".join(sorted(refusing)[:3]))
        return words.not_free(ask.num_gpus, self._largest_free(ask))

    def _why_full(self, shapes: list[Shape]) -> Why:
        """Return the words for hosts that all lack room: those of the one that lacks least."""
        full = [
            (h.full.free, h.label, h.full)
            for h in self.hosts.values()
            if h.full and h.shape in shapes
        ]
        _, label, volume = max(full, key=lambda f: f[:2])
        return words.no_room(label, volume)

    def _largest_free(self, ask: Ask) -> int:
        """Return the most suitable GPUs that are free on one host, kept hosts included."""
        largest = 0
        for shape, uniform in self._shapes(ask):
            pool = self._pools[shape]
            if uniform:
                largest = max(largest, max(pool, default=0))
                continue
            for host_id in (h for hosts in pool.values() for h in hosts):
                largest = max(largest, len(matching(ask, shape, self.free(host_id))))
        kept = (len(matching(ask, self.hosts[h].shape, self.free(h))) for h in self.kept)
        return max(largest, max(kept, default=0))

    def _fits_now(self, ask: Ask, host_id: str) -> bool:
        shape = self.hosts[host_id].shape
        if not shape.is_open or len(self.free(host_id)) < ask.num_gpus:
            return False
        return len(matching(ask, shape, self.free(host_id))) >= ask.num_gpus

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
                if shape.is_open and any(fits):
                    known.append((shape, all(fits)))
            self._suitable[ask] = known
        return known

    def _most_free(self, ask: Ask) -> list[str]:
        """Return hosts that could hold the job if idle, of each shape those most free."""
        if ask.pin is not None or ask.sources:
            named = [h for h in self._candidates(ask) if h not in self.kept]
            return [h for h in named if self._could_hold(ask, h)]
        found = []
        for shape, _ in self._shapes(ask):
            if shape.total < ask.num_gpus:
                continue
            pool = self._pools[shape]
            for count in sorted(pool, reverse=True):
                host_id = next((h for h in pool[count] if self._could_hold(ask, h)), None)
                if host_id is not None:
                    found.append(host_id)
                    break
        return found

    def _could_hold(self, ask: Ask, host_id: str) -> bool:
        host = self.hosts[host_id]
        shape = host.shape
        if not shape.is_open or shape.total < ask.num_gpus:
            return False
        if host_id in ask.avoid or host.forgotten:
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
                    self._labels.setdefault(host.id, []).append(host.id)
                    if host.label != host.id:
                        self._labels.setdefault(host.label, []).append(host.id)
        return self._labels.get(pin, [])


def _why_unsuited(ask: Ask, shapes: list[Shape]) -> Why | None:
    """Return why no GPU at all would do, busy or free."""
    kinds = {kind for shape in shapes if shape.cuda for kind in shape.kinds}
    typed = [
        (name, memory)
        for name, memory in kinds
        if ask.gpu_type is None or is_type(ask.gpu_type, name)
    ]
    if ask.gpu_type is not None and not typed:
        return words.no_such_type(ask.gpu_type, ", ".join(sorted({name for name, _ in kinds})[:4]))
    small = typed and all(0 < memory < ask.memory_mib for _, memory in typed)
    if small and not (ask.num_gpus == 1 and any(not s.cuda for s in shapes)):
        return words.memory_short(ask.memory_mib, max(memory for _, memory in typed))
    return None
