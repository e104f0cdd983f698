"""The relay over the files of an attempt: which messages are due, whatever becomes of those before them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.gpu_agent.core.holding import PATIENCE_SECONDS, SILENCE_SECONDS
from services.gpu_agent.core.numbering import Position
from services.gpu_agent.facts import RunExited, RunStarted
from services.gpu_agent.layout import JobFiles
from services.gpu_agent.relay import Relay
from services.gpu_agent.spool import AttemptSpool
from shared.bus.port import (
    BusError,
    BusUnavailable,
    MessageTooLarge,
    PermissionDenied,
    PubAck,
    PublishTimeout,
    StreamFull,
)

FULL = StreamFull("METRICS")
DENIED = PermissionDenied("met.h1.job.1")
LOST = PublishTimeout("no acknowledgement")
AWAY = BusUnavailable("the broker is away")


@dataclass
class Hand:
    """A clock that a test turns."""

    at: float = 1000.0

    def boot(self) -> float:
        return self.at

    def now(self) -> datetime:
        return datetime(2026, 11, 27, tzinfo=UTC)


class Yard:
    """One attempt and its relay; lanes are published by hand."""

    def __init__(self, folder: Path) -> None:
        self.job = JobFiles(folder / "job")
        self.job.attempt(1).root.mkdir(parents=True)
        self.clock = Hand()
        self.step = 0
        self.begin()

    def begin(self) -> None:
        """Start an agent, or the next one."""
        self.relay = Relay("h1", self.clock)  # type: ignore[arg-type]
        self.spool = AttemptSpool(self.job, 1, now=self.clock.at)
        self.relay.add(self.spool)

    def train(self, steps: int) -> None:
        """Write metrics of `steps` steps and a checkpoint behind them."""
        with self.spool.files.events.open("a") as file:
            for _ in range(steps):
                self.step += 1
                file.write(json.dumps({"type": "metric", "step": self.step}) + "\n")
            mark = {"type": "checkpoint", "t": 1.0, "step": self.step, "path": "p"}
            file.write(json.dumps(mark) + "\n")

    def end(self) -> None:
        """Write the last fact."""
        self.spool.note_all_checkpoints()
        ends = self.spool.find_ends()
        self.spool.facts.append(RunExited(seq=0, t=2.0, outcome="completed"), ends=ends)
        self.spool.close(ends)

    def publish(self, lane: str, result: BusError | None = None) -> list[str]:
        """Let a lane publish once, with this outcome for each message; return what it sent."""
        while self.relay.read_once():
            pass
        sent = []
        for spool, stream, batches in self.relay._plan(lane):
            for batch in batches:
                _, event, _, _ = self.relay._message(spool, stream, batch)
                step = getattr(event, "step", None)
                name = event.type.split(".")[1]
                sent.append(name if step is None else f"{name} {step}")
            answers = [result or PubAck(lane, 1) for _ in batches]
            self.relay._settle(spool, stream, answers)
        return sent


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


def test_a_checkpoint_goes_behind_the_metrics_in_front_of_it(yard: Yard) -> None:
    yard.spool.facts.append(RunStarted(seq=0, t=1.0, pid=1, boot_id="b", warm=True))
    yard.train(3)
    assert yard.publish("RUNS") == ["started"]
    assert yard.publish("RUNS") == []
    yard.relay._wake["RUNS"].clear()
    assert yard.publish("METRICS") == ["metrics"]
    assert yard.relay._wake["RUNS"].is_set(), "it goes at once"
    assert yard.publish("RUNS") == ["checkpoint 3"]
    yard.train(2)
    yard.train(2)
    assert yard.publish("METRICS") == ["metrics"]
    assert yard.publish("RUNS") == ["checkpoint 5", "checkpoint 7"]


def test_metrics_behind_a_checkpoint_do_not_hold_it(yard: Yard) -> None:
    yard.train(1)
    assert yard.publish("METRICS") == ["metrics"]
    yard.train(1)
    yard.publish("METRICS", LOST)
    assert yard.publish("RUNS") == ["checkpoint 1"]


@pytest.mark.parametrize("lost", [LOST, AWAY])
def test_it_waits_all_through_a_cut_and_what_is_behind_it_too(yard: Yard, lost: BusError) -> None:
    yard.train(3)
    yard.end()
    for _ in range(20):
        yard.clock.at += SILENCE_SECONDS
        yard.publish("METRICS", lost)
        assert yard.publish("RUNS") == []
    yard.clock.at += SILENCE_SECONDS
    assert yard.publish("METRICS") == ["metrics"]
    assert yard.publish("RUNS") == ["checkpoint 3", "exited"]


@pytest.mark.parametrize("refusal", [FULL, DENIED])
def test_metrics_that_are_refused_hold_back_nothing_for_ever(yard: Yard, refusal: BusError) -> None:
    yard.train(3)
    yard.end()
    began, sent = yard.clock.at, []
    while not sent:
        yard.publish("METRICS", refusal)
        sent = yard.publish("RUNS")
        yard.clock.at += SILENCE_SECONDS / 2
        assert yard.clock.at - began < 3 * PATIENCE_SECONDS
    assert sent == ["checkpoint 3", "exited"]
    assert yard.clock.at - began > PATIENCE_SECONDS


def test_once_patience_is_over_later_checkpoints_wait_no_more_until_the_metrics_have_caught_up(
    yard: Yard,
) -> None:
    yard.train(3)
    assert yard.publish("RUNS") == []
    for _ in range(8):
        yard.clock.at += SILENCE_SECONDS / 2
        yard.publish("METRICS", FULL)
    assert yard.publish("RUNS") == ["checkpoint 3"]
    yard.train(1)
    assert yard.publish("RUNS") == ["checkpoint 4"]
    yard.clock.at += 1.0
    yard.spool.streams["met"].retry_at = 0.0
    while yard.publish("METRICS"):
        pass
    yard.train(1)
    assert yard.publish("RUNS") == []


def test_an_attempt_that_the_api_refuses_waits_for_no_metrics(yard: Yard) -> None:
    yard.train(3)
    yard.spool.refused = True
    assert yard.publish("METRICS") == []
    assert yard.publish("RUNS") == ["checkpoint 3"]


def test_the_next_agent_holds_it_as_well(yard: Yard) -> None:
    yard.train(3)
    yard.publish("METRICS")
    assert yard.publish("RUNS") == ["checkpoint 3"]
    yard.train(2)
    assert yard.publish("RUNS") == []
    yard.relay.save()
    yard.begin()
    assert yard.publish("RUNS") == []
    assert yard.publish("METRICS") == ["metrics"]
    assert yard.publish("RUNS") == ["checkpoint 5"]


def test_what_is_published_again_goes_first_too(yard: Yard) -> None:
    yard.train(3)
    yard.publish("METRICS")
    yard.publish("RUNS")
    for lane, epoch in (("METRICS", "e1"), ("RUNS", "r1"), ("METRICS", "e2"), ("RUNS", "r2")):
        yard.relay.note_epoch(lane, epoch)
    assert yard.publish("RUNS") == []
    assert yard.publish("METRICS") == ["metrics"]
    assert yard.publish("RUNS") == ["checkpoint 3"]


def test_a_checkpoint_behind_a_message_that_was_too_large_waits_for_its_last_part(
    yard: Yard,
) -> None:
    yard.train(4)
    assert yard.publish("METRICS", MessageTooLarge("too large")) == ["metrics"]
    stream = yard.spool.streams["met"]
    first, _ = yard.relay._plan("METRICS")[0][2]
    stream.settle([True, False], yard.clock.at)
    assert len(first.items) == 2
    assert yard.publish("RUNS") == []
    assert yard.publish("METRICS") == ["metrics"]
    assert yard.publish("RUNS") == ["checkpoint 4"]


@pytest.mark.parametrize("loss", ["removed", "cut short", "ended before"])
def test_metrics_that_are_not_in_the_file_any_more_are_not_waited_for(
    yard: Yard, loss: str
) -> None:
    yard.train(3)
    yard.spool._note_checkpoints()
    events = yard.spool.files.events
    if loss == "removed":
        events.unlink()
    elif loss == "cut short":
        events.write_bytes(b"")
    else:
        yard.spool.streams["met"].end = Position(0, 0)
    assert yard.publish("RUNS") == ["checkpoint 3"]


def test_a_lane_far_behind_is_waited_for(yard: Yard) -> None:
    """More than is read or sent at a time stands in front of the checkpoint."""
    yard.train(20_000)
    rounds = 0
    while not yard.publish("RUNS"):
        assert yard.publish("METRICS")
        rounds += 1
    assert rounds > 10
    assert yard.spool.streams["met"].published.seq == 20_000
