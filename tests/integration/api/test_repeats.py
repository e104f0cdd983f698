"""A request that nobody answers is said again, seldom enough, and no more once it is answered."""

from __future__ import annotations

import pytest

from services.api.outbox import OutboxRelay, Outgoing
from services.api.repeats import AT_ONCE, LONGEST_SECONDS, Repeats, Said, choose
from shared.bus import Bus
from shared.bus.port import BusError
from shared.events import Envelope
from shared.events.requests import JobCancelRequested
from shared.jobs.lifecycle import Change
from shared.jobs.status import JobStatus
from tests.conftest import BusFor
from tests.integration.api.conftest import MakeYard
from tests.integration.api.test_outbox import requests
from tests.integration.api.yard import ApiYard, now

pytestmark = [pytest.mark.integration]
SUBMIT, CANCEL = "request.job.submit.v1", "request.job.cancel.v1"


async def published(yard: ApiYard, bus: Bus) -> None:
    yard.link.attach(bus)
    assert await OutboxRelay(yard.services).publish_once()


async def test_only_what_has_no_answer_is_said_again_and_reaches_the_stream(
    make_yard: MakeYard, database_url: str | None, streams: None, bus_for: BusFor
) -> None:
    yard = make_yard(database_url)
    mute, heard = (await yard.submit())["uuid"], (await yard.submit())["uuid"]
    await yard.act(mute, "cancel")
    await yard.say(Change.QUEUED, heard, status=JobStatus.PENDING, req_n=1)
    await yard.act(heard, "cancel")
    await published(yard, await bus_for("api"))
    scheduler = await bus_for("scheduler")
    first = await requests(scheduler)
    assert len(first) == 4
    assert await Repeats(yard.services).repeat_once() == 0, "not before 30 s have passed"

    repeats = Repeats(yard.services, first=0.0)
    assert await repeats.repeat_once() == 3
    again = (await requests(scheduler))[4:]
    assert again == [(mute, 1, SUBMIT), (mute, 2, CANCEL), (heard, 2, CANCEL)]
    await yard.say(Change.CANCELLED, heard, status=JobStatus.CANCELLED, req_n=2)
    await yard.say(Change.QUEUED, mute, status=JobStatus.PENDING, req_n=1)
    assert await repeats.repeat_once() == 1
    assert (await requests(scheduler))[7:] == [(mute, 2, CANCEL)]
    await yard.say(Change.CANCELLED, mute, status=JobStatus.CANCELLED, req_n=2)
    assert await repeats.repeat_once() == 0


async def test_nothing_is_said_again_while_the_broker_is_away(make_yard: MakeYard) -> None:
    yard = make_yard()
    assert await Repeats(yard.services, first=0.0).repeat_once() == 0
    await yard.submit()
    with pytest.raises(BusError):
        await Repeats(yard.services, first=0.0).repeat_once()


def test_each_repetition_waits_twice_as_long_and_a_round_is_bounded() -> None:
    waiting = [a_request(n) for n in range(AT_ONCE + 50)]
    chosen, said = choose(waiting, {}, 1000.0, 30.0)
    assert [o.position for o in chosen] == list(range(AT_ONCE))
    assert said[0] == Said(1, 1060.0)
    chosen, said = choose(waiting, said, 1059.0, 30.0)
    assert [o.position for o in chosen] == list(range(AT_ONCE, AT_ONCE + 50))
    chosen, said = choose(waiting[:1], said, 1060.0, 30.0)
    assert said == {0: Said(2, 1180.0)}
    assert choose(waiting[:1], said, 1179.0, 30.0)[0] == []
    assert choose(waiting[:1], {0: Said(30, 0.0)}, 0.0, 30.0)[1] == {0: Said(31, LONGEST_SECONDS)}
    assert choose([], said, 2000.0, 30.0) == ([], {})


def a_request(position: int) -> Outgoing:
    event = JobCancelRequested(job="j", req_n=position + 1, at=now())
    return Outgoing(position, "job:j", "req.job.j", event, Envelope(str(position), "/t", now()))
