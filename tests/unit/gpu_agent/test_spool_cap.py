"""A host keeps at most so much unconfirmed data: logs give way, with a gap; metrics never."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gpu_agent.core.batching import Limits
from services.gpu_agent.core.spool_cap import Held, to_drop
from services.gpu_agent.kind_stream import KindStream
from services.gpu_agent.layout import JobFiles
from services.gpu_agent.relay import Relay
from services.gpu_agent.spool import AttemptSpool
from shared.clock import SystemClock
from shared.runs import write_atomic_json
from tests.faults.volumes import needs_root, small_volume

CAP = 4_000_000


@pytest.mark.parametrize(
    ("held", "dropped"),
    [
        ([], []),
        ([("a", Held(1000, 1000, 0))], []),
        ([("a", Held(900, 900, 101))], [("a", 126)]),
        ([("a", Held(300, 300, 0)), ("b", Held(900, 900, 0))], [("b", 325)]),
        ([("a", Held(900, 900, 0)), ("b", Held(2000, 2000, 0))], [("b", 2000), ("a", 25)]),
        ([("a", Held(0, 0, 5000))], []),
        ([("a", Held(5000, 0, 0))], []),
        ([("a", Held(10, 10, 5000))], [("a", 10)]),
    ],
)
def test_which_logs_give_way(held: list[tuple[str, Held]], dropped: list[tuple[str, int]]) -> None:
    assert list(to_drop(held, 1000)) == dropped


_held = st.builds(
    lambda log, part, other: Held(log, int(log * part), other),
    st.integers(0, 10**6), st.floats(0, 1), st.integers(0, 10**6),
)  # fmt: skip


@given(st.dictionaries(st.integers(), _held, max_size=20), st.integers(1, 10**6))
def test_no_more_is_dropped_than_may_be_and_enough_where_there_is_enough(
    held: dict[int, Held], cap: int
) -> None:
    dropped = dict(to_drop(list(held.items()), cap))
    assert all(0 < size <= held[key].droppable for key, size in dropped.items())
    total = sum(h.log + h.other for h in held.values())
    left = total - sum(dropped.values())
    everything = sum(h.droppable for h in held.values())
    assert total > cap or not dropped
    assert left <= cap or sum(dropped.values()) == everything


def a_spool(work: Path, name: str) -> AttemptSpool:
    job = JobFiles(work / name)
    job.attempt(1).root.mkdir(parents=True)
    job.log.parent.mkdir()
    job.log.touch()
    write_atomic_json(job.attempt(1).entry, {"log_offset": 0, "entry": None})
    return AttemptSpool(job, 1, now=0.0)


def everything(stream: KindStream) -> list[dict[str, object]]:
    found = []
    while True:
        while batches := stream.take(0.0, Limits(count=1000)):
            found += [item for b in batches for item in b.items]
            stream.settle([True] * len(batches), 0.0)
        if not stream.poll(0.0, 0.0):
            return found


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_logs_give_way_on_the_host_and_metrics_never(tmp_path: Path) -> None:
    relay = Relay("box1", SystemClock(), cap=CAP)
    spools = [a_spool(tmp_path, f"job{n}") for n in range(3)]
    for spool in spools:
        relay.add(spool)
    line = "[INFO] " + "x" * 92 + "\n"
    sizes = [10_000, 30_000, 50_000]  # lines: 1, 3 and 5 MB
    for spool, lines in zip(spools, sizes, strict=True):
        spool.log_path.write_text(line * lines)
        steps = [
            json.dumps({"type": "metric", "t": 1.0, "step": s, "metrics": {"loss": 1.0}})
            for s in range(2000)
        ]
        spool.files.events.write_text("\n".join(steps) + "\n")
    assert sum(blocks(s.log_path) for s in spools) > 2 * CAP
    for _ in range(5):
        relay._weigh_at = 0.0
        relay.read_once()
    held = [s.held() for s in spools]
    assert sum(h.log + h.other for h in held) <= CAP
    # the room is given back on the disk as well, and the file has its size, so that offsets stay
    assert sum(blocks(s.log_path) for s in spools) < CAP + 3 * (1 << 20)
    assert [s.log_path.stat().st_size for s in spools] == [len(line) * n for n in sizes]
    for spool, lines in zip(spools, sizes, strict=True):
        log = everything(spool.streams["log"])
        gaps = [g for g in log if "gap" in g]
        lost = sum(g["gap"]["lines"] for g in gaps)  # type: ignore[index,misc]
        assert lost + len(log) - len(gaps) == lines
        assert not any("\0" in str(item["message"]) for item in log)
        assert len(everything(spool.streams["met"])) == 2000
    assert any(s.streams["log"].gaps for s in spools)


def test_the_log_of_a_run_that_is_over_stays(tmp_path: Path) -> None:
    relay = Relay("box1", SystemClock(), cap=1000)
    spool = a_spool(tmp_path, "job")
    relay.add(spool)
    spool.log_path.write_text("[INFO] line\n" * 1000)
    spool.close(spool.find_ends())
    relay.read_once()
    assert spool.held().droppable == 0
    assert not spool.streams["log"].gaps


def test_the_cap_of_a_host_is_a_gibibyte() -> None:
    held = [(n, Held(1 << 28, 1 << 28, 0)) for n in range(4)]
    assert to_drop(held) == ()
    assert to_drop([*held, (9, Held(1, 1, 0))]) == ((0, (1 << 27) + 1),)


@needs_root
def test_a_confirmed_attempt_is_not_forgotten_before_that_is_on_disk(tmp_path: Path) -> None:
    with small_volume(tmp_path / "jobs", 8) as volume:
        relay = Relay("box1", SystemClock())
        spool = a_spool(volume.path, "job")
        relay.add(spool)
        volume.fill()
        relay.retire(spool)
        assert relay.spools == [spool]
        assert not spool.done
        volume.release()
        relay.retire(spool)
        assert relay.spools == []
        assert json.loads(spool.files.relay.read_bytes())["done"] is True
