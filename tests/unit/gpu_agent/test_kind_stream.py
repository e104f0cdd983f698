from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.gpu_agent import spool as spools
from services.gpu_agent.core.batching import Limits
from services.gpu_agent.core.numbering import Position, json_lines, of_types
from services.gpu_agent.kind_stream import KindStream
from services.gpu_agent.layout import JobFiles
from services.gpu_agent.spool import AttemptSpool
from shared.runs import write_atomic_json

LIMITS = Limits(count=3)


def stream_of(path: Path) -> KindStream:
    return KindStream("met", path, json_lines(of_types("metric")), Position())


def write(path: Path, first: int, last: int) -> None:
    with path.open("a") as file:
        for step in range(first, last + 1):
            file.write(json.dumps({"type": "metric", "step": step}) + "\n")


def publish(stream: KindStream, *, now: float = 0.0) -> list[int]:
    """Read and publish everything; return the numbers that went out."""
    sent = []
    while stream.poll(now, 0.0):
        pass
    while batches := stream.take(now, LIMITS):
        for batch in batches:
            sent += range(batch.first_seq, batch.first_seq + len(batch.items))
        stream.settle([True] * len(batches), now)
    return sent


def test_reads_on_and_takes_up_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, 1, 5)
    stream = stream_of(path)
    assert publish(stream) == [1, 2, 3, 4, 5]
    write(path, 6, 7)
    assert publish(stream) == [6, 7]
    stream.confirm(5, 0.0)
    again = stream_of(path)
    again.restore(json.loads(json.dumps(stream.dump())))
    assert publish(again) == []
    write(path, 8, 8)
    assert publish(again) == [8]
    again.rewind()
    # the confirmed place is the end of a message: what lies behind it goes out again, and no more
    assert publish(again) == [6, 7, 8]


def test_what_failed_goes_out_again_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, 1, 9)
    stream = stream_of(path)
    stream.poll(0.0, 0.0)
    first = stream.take(0.0, LIMITS)
    assert [b.first_seq for b in first] == [1, 4, 7]
    stream.settle([True, False, False], 0.0)
    assert stream.round == 0  # nothing behind the failed one is stored: the same ids do
    stream.settle([False, True], 0.0)
    assert stream.round == 1  # the second is stored, and would be dropped as a copy when it is due
    assert [b.first_seq for b in stream.take(0.0, LIMITS)] == [4, 7]
    stream.settle([True, True], 0.0)
    assert stream.published.seq == 9


def test_message_that_is_too_large_is_halved_then_emptied(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, 1, 3)
    stream = stream_of(path)
    stream.poll(0.0, 0.0)
    stream.take(0.0, LIMITS)
    assert stream.shrink_first()
    assert [len(b.items) for b in stream.take(0.0, LIMITS)] == [1, 2]
    assert not stream.shrink_first()
    assert stream.take(0.0, LIMITS)[0].items[0]["dropped"] is True
    stream.settle([True, False], 0.0)
    assert stream.published.seq == 0  # half a message is no place to go on from
    stream.settle([True], 0.0)
    assert stream.published.seq == 3


def test_memory_is_bounded_while_the_bus_is_away(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, 1, 20_000)
    stream = stream_of(path)
    for _ in range(100):
        stream.poll(0.0, 0.0)
    assert stream.backlog() > 0
    assert stream.find_end().seq == 20_000


def test_resend_waits_longer_each_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, 1, 3)
    stream = stream_of(path)
    assert publish(stream, now=100.0) == [1, 2, 3]
    assert not stream.resend_if_stuck(114.0)
    assert stream.resend_if_stuck(115.5)
    assert publish(stream, now=116.0) == [1, 2, 3]
    assert not stream.resend_if_stuck(140.0)
    stream.confirm(3, 141.0)
    assert not stream.resend_if_stuck(1000.0)
    assert stream.patience == 15.0


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.sampled_from(["write", "publish", "fail", "partial", "restart", "confirm", "rewind"])
    )
)
def test_every_number_goes_out_in_order_whatever_happens(tmp_path: Path, script: list[str]) -> None:
    """A consumer that skips what it has and refuses gaps ends with every item once."""
    path = tmp_path / "events.jsonl"
    path.unlink(missing_ok=True)
    path.touch()
    written, stored, names = 0, [], set()
    stream = stream_of(path)

    def arrive(batch: object) -> bool:
        name = (batch.first_seq, len(batch.items), stream.round)
        if name in names:
            return True  # the stream drops it as a copy
        names.add(name)
        if batch.first_seq <= len(stored) + 1:
            stored.extend(i["step"] for i in batch.items[len(stored) + 1 - batch.first_seq :])
        return True

    for action in [*script, "rewind", "publish"]:
        if action == "write":
            write(path, written + 1, written + 7)
            written += 7
        elif action == "restart":
            dumped = stream.dump()
            stream = stream_of(path)
            stream.restore(dumped)
        elif action == "confirm":
            stream.confirm(len(stored), 0.0)
        elif action == "rewind":
            stream.rewind()
        else:
            _send(stream, arrive, action)
    assert stored == list(range(1, written + 1))


def _send(stream: KindStream, arrive: object, how: str) -> None:
    while stream.poll(0.0, 0.0):
        pass
    for _ in range(100):
        batches = stream.take(0.0, LIMITS)
        if not batches:
            return
        if how == "fail":
            stream.settle([False] * len(batches), 0.0)
            return
        if how == "partial":
            ok = [i != 1 and arrive(b) for i, b in enumerate(batches)]
            stream.settle(ok, 0.0)
            return
        stream.settle([arrive(b) for b in batches], 0.0)


def attempt_spool(tmp_path: Path, log_offset: int = 0) -> AttemptSpool:
    job = JobFiles(tmp_path / "job1")
    job.attempt(1).root.mkdir(parents=True, exist_ok=True)
    job.log.parent.mkdir(exist_ok=True)
    write_atomic_json(job.attempt(1).entry, {"log_offset": log_offset, "entry": None})
    return AttemptSpool(job, 1, now=0.0)


def test_log_above_the_cap_loses_its_oldest_part_with_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "LOG_CAP_BYTES", 100_000)
    spool = attempt_spool(tmp_path)
    lines = [f"[INFO] line {i} {'x' * 80}" for i in range(30_000)]
    spool.log_path.write_text("\n".join(lines) + "\n")
    for _ in range(20):
        spool.poll(0.0)
        spool.give_up_log()
    log = spool.streams["log"]
    (gap,) = log.gaps
    seen = _all_items(log)
    marks = [i for i, item in enumerate(seen) if "gap" in item]
    assert marks == [gap.at.seq]
    kept = len(seen) - 1
    assert gap.lines + kept == len(lines)
    assert seen[-1]["message"].startswith("line 29999 ")
    assert seen[marks[0]]["gap"] == {"lines": gap.lines, "bytes": gap.bytes}
    # read again by another agent: the same numbers
    again = attempt_spool(tmp_path).streams["log"]
    assert again.find_end().seq == len(seen)
    assert _all_items(again) == seen


def _all_items(stream: KindStream) -> list[dict]:
    found = []
    while True:
        while batches := stream.take(0.0, Limits(count=1000)):
            found += [{k: v for k, v in i.items() if k != "t"} for b in batches for i in b.items]
            stream.settle([True] * len(batches), 0.0)
        if not stream.poll(0.0, 0.0):
            return found


def test_checkpoints_become_facts_once(tmp_path: Path) -> None:
    spool = attempt_spool(tmp_path)
    events = spool.files.events
    with events.open("a") as file:
        for step in (10, 20):
            file.write(
                json.dumps({"type": "checkpoint", "t": 1.0, "step": step, "path": "p"}) + "\n"
            )
        file.write(json.dumps({"type": "checkpoint_deleted", "t": 1.0, "step": 10}) + "\n")
        file.write(json.dumps({"type": "checkpoint", "step": "ten"}) + "\n")
    spool.poll(0.0)
    spool.poll(0.0)
    again = attempt_spool(tmp_path)
    again.poll(0.0)
    assert again.facts.last_seq == 3
    lines = [json.loads(line) for line in again.files.facts.read_text().splitlines()]
    assert [(r["step"], r["deleted"]) for r in lines] == [(10, False), (20, False), (10, True)]
    assert [r["seq"] for r in lines] == [1, 2, 3]


def test_torn_fact_is_cut_off(tmp_path: Path) -> None:
    spool = attempt_spool(tmp_path)
    with spool.files.events.open("a") as file:
        file.write(json.dumps({"type": "checkpoint", "t": 1.0, "step": 1, "path": "p"}) + "\n")
    spool.poll(0.0)
    whole = spool.files.facts.read_bytes()
    spool.files.facts.write_bytes(whole + b'{"seq": 2, "typ')
    again = attempt_spool(tmp_path)
    assert again.facts.last_seq == 1
    assert spool.files.facts.read_bytes() == whole


def test_log_of_an_earlier_attempt_is_not_numbered(tmp_path: Path) -> None:
    spool = attempt_spool(tmp_path, log_offset=6)
    spool.log_path.write_text("older\nnewer\nlast without break")
    assert spool.streams["log"].find_end() == Position(2, 30, "")
    spool.poll(0.0)
    (batch,) = spool.streams["log"].take(0.0, Limits())
    assert [i["message"] for i in batch.items] == ["newer"]


def test_what_the_api_lost_goes_out_again_from_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"type": "metric", "step": 0}\n')
    start = path.stat().st_size
    write(path, 1, 7)
    stream = KindStream("met", path, json_lines(of_types("metric")), Position(0, start))
    assert publish(stream) == [1, 2, 3, 4, 5, 6, 7]
    stream.confirm(7, 0.0)
    round_ = stream.round
    assert not stream.go_back(7)
    assert publish(stream) == []
    assert stream.go_back(3)
    assert publish(stream) == [4, 5, 6, 7]
    assert stream.round > round_, "the same message id would be dropped as a copy"
    assert stream.confirmed_seq == 3
    stream.confirm(7, 0.0)
    again = KindStream("met", path, json_lines(of_types("metric")), Position(0, start))
    again.restore(json.loads(json.dumps(stream.dump())))
    assert again.go_back(0)
    assert publish(again) == [1, 2, 3, 4, 5, 6, 7]
