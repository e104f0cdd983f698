"""`host.updated`: what is known of each host, on change and every 15 seconds. A feed; a lost one is restated by the next."""

from __future__ import annotations

from datetime import datetime

from services.scheduler.core.state import ClusterState, Host, Moment
from services.scheduler.execute import SOURCE
from shared.bus import Bus, BusError
from shared.events import subjects
from shared.events.base import Envelope
from shared.events.job import HostUpdated
from shared.ids import new_message_id

EVERY_SECONDS = 15.0
BATCH = 256


class HostFeed:
    """Remembers what was last said about each host."""

    def __init__(self, bus: Bus) -> None:
        """Nothing was said yet."""
        self._bus = bus
        self._said: dict[str, tuple[object, float]] = {}
        self._number = 0

    async def tell(self, state: ClusterState, now: Moment) -> int:
        """Publish hosts that changed, and those not mentioned for a while; return how many. Raises BusError."""
        due = [host for host in state.hosts.values() if self._is_due(host, now)][:BATCH]
        if not due:
            return 0
        items = []
        for host in due:
            event = self._event(host, now.wall)
            identity = new_message_id()
            envelope = Envelope(identity, SOURCE, now.wall)
            items.append((subjects.host(host.id), event, envelope, identity))
        results = await self._bus.publish_many(items, timeout=5)
        for host, result in zip(due, results, strict=True):
            if isinstance(result, BusError):
                raise result
            self._said[host.id] = (_outline(host), now.boot)
        return len(due)

    def _is_due(self, host: Host, now: Moment) -> bool:
        said = self._said.get(host.id)
        if said is None or said[0] != _outline(host):
            return True
        return not host.forgotten and now.boot - said[1] >= EVERY_SECONDS

    def _event(self, host: Host, at: datetime) -> HostUpdated:
        # Milliseconds: higher with each event, also after a restart, without a row for each.
        self._number = max(self._number + 1, int(at.timestamp() * 1000))
        return HostUpdated(
            at=at,
            host=host.id,
            host_n=self._number,
            label=host.label,
            online=host.online,
            drained=host.drained,
            forgotten=host.forgotten,
            last_seen=host.seen.wall if host.seen else None,
            inventory=host.inventory,
            runs=tuple(sorted(host.runs)),
        )


def _outline(host: Host) -> object:
    """Return what is worth an event at once; utilisation waits for the next round."""
    inventory = host.inventory
    gpus = tuple((g.index, g.uuid, g.held_by) for g in inventory.gpus) if inventory else ()
    return (host.label, host.online, host.drained, host.forgotten, gpus, tuple(sorted(host.runs)))
