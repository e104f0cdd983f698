"""Judges what users could read of one job before, during and after cuts: pure, so that planted violations can prove it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from tests.faults.checker import Violation
from tests.faults.partitions.cuts import Cut, Way

SLACK = 1.0
"""Seconds by which a clock read here and there may differ: threads of a busy machine."""
State = tuple[str, str | None, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer of REST, between the moments of asking and reading."""

    asked: float
    at: float
    status: str
    reason: str | None
    attempt: int
    host: str | None = None
    step: int = 0
    waiting_for: str | None = None

    @property
    def state(self) -> State:
        return self.status, self.reason, self.attempt


@dataclass(frozen=True, slots=True)
class FrameSeen:
    """One frame of the live feed; `data` as JSON text."""

    at: float
    seq: int
    type: str
    data: str


@dataclass(frozen=True, slots=True)
class LogSeen:
    """The log of one attempt: what stands in the file on its host, and what REST shows."""

    attempt: int
    written: tuple[str, ...]
    shown: tuple[str, ...]
    fenced: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """The times in force, in seconds."""

    silent_after: float
    beat: float
    late: float
    """From the moment at which silence counts until it is shown."""
    late_deaf: float
    """The same where heartbeats still arrive."""
    heal: float
    """From the heal until the host is heard."""
    requeue_after: float


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that was read of one job."""

    job: str
    policy: str
    terms: Terms
    cuts: tuple[Cut, ...]
    reads: tuple[Seen, ...]
    frames: tuple[FrameSeen, ...]
    replay: tuple[FrameSeen, ...]
    logs: tuple[LogSeen, ...] = ()
    chart: tuple[int, ...] = ()
    """Steps of the loss curve in the end."""
    max_steps: int = 0

    def may_be_silent(self, cut: Cut) -> tuple[float, float]:
        """Return when `disconnected` may be shown because of this cut."""
        earliest = cut.began + self.terms.silent_after - self.terms.beat - SLACK
        return earliest, cut.healed + self.terms.heal

    def must_be_silent(self, cut: Cut) -> tuple[float, float]:
        """Return when `disconnected` has to be shown because of this cut; empty where it is short."""
        late = self.terms.late_deaf if cut.way is Way.TO_AGENT else self.terms.late
        return cut.began + self.terms.silent_after + late, cut.healed


def judge(seen: Reading) -> list[Violation]:
    """Return every moment at which a user read something wrong, and what is missing in the end."""
    shown = [*seen.reads, *_of_frames(seen)]
    found = [*_disconnected(seen, shown), *_course(seen, list(seen.reads), "REST")]
    found += [*_course(seen, _of_frames(seen), "WebSocket"), *_steps(seen)]
    found += [*_feed(seen), *_agreement(seen), *_logs(seen)]
    if seen.chart != tuple(range(1, seen.max_steps + 1)):
        lost = sorted(set(range(1, seen.max_steps + 1)) - set(seen.chart))
        found.append(Violation("gap in the curve", seen.job, f"missing {lost}, {len(seen.chart)}"))
    return found


def _of_frames(seen: Reading) -> list[Seen]:
    """Return what the status frames said, each at the moment it was received."""
    found = []
    for frame in seen.frames:
        if frame.type == "status":
            data = json.loads(frame.data)
            found.append(
                Seen(frame.at, frame.at, data["status"], data["reason"], data["attempt"])
            )  # fmt: skip
    return found


def _held(seen: Reading) -> list[Seen]:
    """Return what the WebSocket showed in the middle and at the end of every time in which it has to say `disconnected`."""
    frames, found = _of_frames(seen), []
    for cut in seen.cuts:
        start, end = seen.must_be_silent(cut)
        for at in (start + SLACK, (start + SLACK + end) / 2, end - 0.1):
            before = [f for f in frames if f.at <= at]
            if start + SLACK <= at < end and before:
                last = before[-1]
                found.append(Seen(at, at, last.status, last.reason, last.attempt))
    return found


def _disconnected(seen: Reading, shown: list[Seen]) -> Iterator[Violation]:
    for one in shown:
        if one.reason == "disconnected" and not any(
            start <= one.at and one.asked <= end
            for start, end in map(seen.may_be_silent, seen.cuts)
        ):
            yield Violation("disconnected without cause", seen.job, _when(seen, one))
    for one in [*seen.reads, *_held(seen)]:
        due = any(
            start < one.asked and one.at < end for start, end in map(seen.must_be_silent, seen.cuts)
        )
        if due and one.status == "RUNNING" and one.reason != "disconnected" and one.attempt < 2:
            yield Violation("cut off and not shown", seen.job, _when(seen, one))


def _course(seen: Reading, shown: list[Seen], where: str) -> Iterator[Violation]:
    """Check the order of states: nothing fails, `keep` is never placed again, the other not before its time."""
    attempt, running, told = 0, False, False
    for one in shown:
        if one.status in ("FAILED", "CANCELLED", "PAUSED"):
            yield Violation("wrong status", seen.job, f"{where}: {_when(seen, one)}")
        if one.attempt < attempt:
            yield Violation("attempt went back", seen.job, f"{where}: {_when(seen, one)}")
        attempt = max(attempt, one.attempt)
        left = running and one.status == "PENDING"
        running = one.status == "RUNNING"
        if (left or one.attempt > 1) and not told and not _may_be_requeued(seen, one):
            told = True
            yield Violation("placed again too early", seen.job, f"{where}: {_when(seen, one)}")
    if not shown or shown[-1].status != "COMPLETED":
        last = _when(seen, shown[-1]) if shown else "nothing"
        yield Violation("not completed", seen.job, f"{where}: {last}")


def _may_be_requeued(seen: Reading, one: Seen) -> bool:
    if seen.policy != "stop_and_requeue":
        return False
    terms = seen.terms
    for cut in seen.cuts:
        # where the host is heard, it may tell itself that it has stopped the run
        wait = terms.silent_after if cut.way is Way.TO_AGENT else terms.requeue_after - terms.beat
        if cut.seconds > terms.silent_after and one.at >= cut.began + wait - SLACK:
            return True
    return False


def _steps(seen: Reading) -> Iterator[Violation]:
    """Check that the step only grows. A next attempt shows the last one's until it has one of its own, which may be lower."""
    attempt, carried, best = 0, -1, 0
    for one in seen.reads:
        if one.attempt != attempt:
            attempt, carried, best = one.attempt, best, 0
        if one.step == carried:
            continue
        carried = -1
        if one.step < best:
            yield Violation("step went back", seen.job, _when(seen, one))
        best = max(best, one.step)


def _feed(seen: Reading) -> Iterator[Violation]:
    """Check that the client that came again and again has every frame once, in order."""
    numbers = [frame.seq for frame in seen.frames]
    if any(b <= a for a, b in pairwise(numbers)):
        yield Violation("frame out of order or twice", seen.job, str(numbers))
    whole = {f.seq: (f.type, f.data) for f in seen.replay if f.type != "progress"}
    read = {f.seq: (f.type, f.data) for f in seen.frames if f.type != "progress"}
    missed = sorted(whole.keys() - read.keys())
    if missed:
        yield Violation("frame missed", seen.job, str(missed))
    odd = sorted(n for n, frame in read.items() if whole.get(n) != frame)
    if odd:
        yield Violation("frame differs", seen.job, f"{odd}: {read[odd[0]]} / {whole.get(odd[0])}")
    if any(f.type == "gap" for f in seen.frames):
        yield Violation("gap shown", seen.job, "the feed has a gap frame")


def _agreement(seen: Reading) -> Iterator[Violation]:
    """Check that whatever REST said, the WebSocket said too, in the same order."""
    told = iter([one.state for one in _of_frames(seen)])
    last: State | None = None
    for one in seen.reads:
        if one.state != last and one.state not in told:
            yield Violation("REST and WebSocket differ", seen.job, _when(seen, one))
            return
        last = one.state


def _logs(seen: Reading) -> Iterator[Violation]:
    for log in seen.logs:
        expected = log.written[: len(log.shown)] if log.fenced else log.written
        if log.shown != expected:
            odd = next(
                (i for i, (a, b) in enumerate(zip(log.shown, expected, strict=False)) if a != b),
                min(len(log.shown), len(expected)),
            )
            text = f"{len(log.shown)} of {len(expected)} lines, first wrong {odd}"
            yield Violation("log not complete and in order", f"{seen.job}.{log.attempt}", text)


def _when(seen: Reading, one: Seen) -> str:
    cut = next((c for c in reversed(seen.cuts) if c.began <= one.at), None)
    text = "before any cut"
    if cut is not None:
        text = f"{one.at - cut.began:.1f} s after the cut {cut.way} of {cut.seconds:.1f} s"
    return f"{one.status} ({one.reason}), attempt {one.attempt}, {text}"
