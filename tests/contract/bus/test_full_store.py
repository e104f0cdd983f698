"""What nats-server does on a full disk, as the watch over it relies on: it names the stream, and a restart heals it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.bus import ensure_streams
from shared.bus.embedded import health
from shared.bus.port import PublishTimeout
from shared.events import Envelope
from shared.events.requests import JobCancelRequested
from tests.conftest import TEST_STORE_MIB, BusFor, RunningBroker
from tests.faults.volumes import needs_root, small_volume
from tests.unit.scheduler.build import EPOCH, job_id

pytestmark = [pytest.mark.contract, needs_root]


async def publish(bus_for: BusFor, number: int) -> None:
    event = JobCancelRequested(job=job_id(number), req_n=1, at=EPOCH)
    bus = await bus_for("api")
    await bus.publish(
        f"req.job.{job_id(number)}", event, Envelope(f"m{number}", "/test", EPOCH),
        msg_id=f"m{number}", timeout=5,
    )  # fmt: skip


async def publish_many(bus_for: BusFor, numbers: range) -> None:
    for number in numbers:
        await publish(bus_for, number)


async def test_a_stream_that_met_a_full_disk_is_named_until_the_broker_restarts(
    home: Path, bus_for: BusFor, broker: RunningBroker
) -> None:
    broker.stop()
    with small_volume(home / "nats" / "store", 24) as volume:
        await broker.start()
        await ensure_streams(await bus_for("scheduler"), store_mib=TEST_STORE_MIB)
        await publish(bus_for, 1)
        assert (await health(home, timeout=30)).is_ok
        volume.fill()
        with pytest.raises(PublishTimeout):
            await publish_many(bus_for, range(2, 200))
        volume.release()
        with pytest.raises(PublishTimeout):
            await publish(bus_for, 500)
        found = await health(home, timeout=30)
        assert found.answered
        assert found.trouble is not None
        assert "REQUESTS" in found.trouble
        assert "no space left" in found.trouble
        await broker.restart()
        await publish(bus_for, 501)
        assert (await health(home, timeout=30)).is_ok
        broker.stop()
