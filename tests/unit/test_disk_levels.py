"""When a volume counts as low or full, and when the embedded broker is started again."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.disk.levels import FULL_BYTES, Level, Volume, fullest, holding, judge, shortage
from trainyard.stack.core.broker_watch import CALM_SECONDS, Look, Watch, decide

MIB = 1 << 20
OK, LOW, FULL = Level.OK, Level.LOW, Level.FULL


@pytest.mark.parametrize(
    ("total_mib", "free_mib", "before", "now"),
    [
        (100_000, 90_000, OK, OK),
        (100_000, 512, OK, OK),
        (100_000, 511, OK, LOW),
        (100_000, 1023, LOW, LOW),
        (100_000, 1024, LOW, OK),
        (100_000, 16, OK, LOW),
        (100_000, 15, OK, FULL),
        (100_000, 31, FULL, FULL),
        (100_000, 32, FULL, LOW),
        (100_000, 0, LOW, FULL),
        (200, 100, OK, OK),
        (200, 19, OK, LOW),
        (200, 39, LOW, LOW),
        (200, 40, LOW, OK),
        (200, 15, OK, FULL),
        (200, 31, FULL, FULL),
        (200, 200, FULL, OK),
        (20, 20, OK, OK),
        (20, 20, LOW, OK),
    ],
)
def test_levels(total_mib: int, free_mib: int, before: Level, now: Level) -> None:
    assert judge(Volume("/x", free_mib * MIB, total_mib * MIB), before) is now


@given(st.integers(64, 1 << 24), st.floats(0, 1), st.sampled_from(Level))
def test_a_level_is_stable_where_nothing_changes(total: int, part: float, before: Level) -> None:
    volume = Volume("/x", int(total * part) * MIB, total * MIB)
    once = judge(volume, before)
    assert judge(volume, once) is once


@given(st.integers(64, 1 << 24))
def test_an_empty_volume_is_never_left_full(total: int) -> None:
    volume = Volume("/x", total * MIB, total * MIB)
    assert judge(volume, FULL) is OK


def test_the_sentence_names_path_need_and_have() -> None:
    short = shortage(Volume("/data", 3 * MIB, 100 * MIB))
    assert short.en == "/data needs 32.0 MiB and has 3.0 MiB free"
    assert short.zh == "/data 需要 32.0 MiB，剩余 3.0 MiB"


def test_the_deepest_folder_holds_a_path() -> None:
    outer, inner = Volume("/a", 1, 9), Volume("/a/b", 2, 9)
    assert holding("/a/b/c", (outer, inner)) is inner
    assert holding("/a/bc", (outer, inner)) is outer
    assert holding("/z", (outer, inner)) is None
    assert fullest((inner, outer)) is outer
    assert fullest(()) is None


def looks(*found: tuple[bool, str | None, Level], every: float = 2.0) -> list[float]:
    """Return the seconds at which the broker is started again."""
    watch, at = Watch(), []
    for number, (answered, trouble, level) in enumerate(found):
        verdict = decide(watch, Look(number * every, answered, trouble, level))
        watch = verdict.watch
        if verdict.restart:
            at.append(number * every)
    return at


WELL, ILL, ILL_FULL, AWAY = (True, None, OK), (True, "x", OK), (True, "x", FULL), (False, "x", OK)


@pytest.mark.parametrize(
    ("found", "restarts"),
    [
        ([WELL] * 5, []),
        ([WELL, ILL, WELL, ILL, WELL], []),
        ([WELL, ILL, ILL], [4.0]),
        ([(True, "x", LOW)] * 2, [2.0]),
        ([ILL_FULL] * 30, []),
        ([ILL_FULL] * 5 + [ILL], [10.0]),
        ([AWAY] * 9, []),
        ([ILL, AWAY, ILL], [4.0]),
        ([ILL] * 12, [2.0, 22.0]),
        ([ILL] * 40, [2.0, 22.0, 62.0]),
        ([ILL, ILL, WELL, ILL, ILL, WELL] + [ILL] * 6, [2.0, 22.0]),
    ],
)
def test_when_the_broker_is_started_again(
    found: list[tuple[bool, str | None, Level]], restarts: list[float]
) -> None:
    assert looks(*found) == restarts


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([None, "ill"]), st.sampled_from(Level)),
        max_size=200,
    )
)
def test_never_on_a_full_disk_and_never_in_a_hurry(
    found: list[tuple[bool, str | None, Level]],
) -> None:
    at = looks(*found)
    assert all(b - a >= CALM_SECONDS for a, b in itertools.pairwise(at))
    for second in at:
        assert found[int(second / 2)] == (True, "ill", found[int(second / 2)][2])
        assert found[int(second / 2)][2] is not FULL


def test_full_is_entered_before_a_group_commit_could_not_be_written() -> None:
    assert FULL_BYTES >= 16 * MIB
