from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gpu_agent.core.reconcile import (
    Action,
    Collect,
    EndUnstarted,
    Phase,
    Refuse,
    RunView,
    Start,
    Stop,
    reconcile,
)
from shared.events.calls import ControlEntry

NEW, ALIVE, GONE, ENDED = Phase.NEW, Phase.ALIVE, Phase.GONE, Phase.ENDED


def entry(attempt: int = 1, desired: str = "run", **more: object) -> ControlEntry:
    return ControlEntry.model_validate(
        {"epoch": "e", "job": "j", "attempt": attempt, "desired": desired} | more
    )


def view(attempt: int, phase: Phase, **more: object) -> RunView:
    return replace(RunView("j", attempt, phase), **more)


def decide(
    wanted: ControlEntry | None, *runs: RunView, complete: bool = True, accepting: bool = True
) -> list[tuple[str, int, str | None]]:
    entries = {"j": wanted} if wanted else {}
    actions = reconcile(entries, runs, complete=complete, accepting=accepting)
    return [shown(a) for a in actions]


def shown(action: Action) -> tuple[str, int, str | None]:
    match action:
        case Start(e) | Refuse(e) | Collect(e):
            return type(action).__name__.lower(), e.attempt, None
        case Stop(_, n, mode, _):
            return "stop", n, mode
        case EndUnstarted(_, n, mode):
            return "end", n, mode


@pytest.mark.parametrize(
    ("wanted", "runs", "expected"),
    [
        (entry(1), [], [("start", 1, None)]),
        (entry(1), [view(1, NEW)], [("start", 1, None)]),
        (entry(1), [view(1, ALIVE)], []),
        (entry(1), [view(1, GONE)], []),
        (entry(1), [view(1, ENDED)], []),
        (entry(2), [view(1, ENDED)], [("start", 2, None)]),
        (entry(2), [view(1, ALIVE)], [("stop", 1, "requeue")]),
        (entry(2), [view(1, ALIVE, stopping="requeue")], []),
        (entry(2), [view(1, GONE)], []),
        (entry(2), [view(1, NEW)], [("end", 1, "requeue"), ("start", 2, None)]),
        # an entry from before a restore of the scheduler's database
        (entry(1), [view(2, ALIVE)], []),
        (entry(1, "stop"), [view(2, ALIVE)], []),
        (entry(1, "stop"), [view(1, ALIVE)], [("stop", 1, "cancel")]),
        (entry(1, "stop", stop_mode="drain"), [view(1, ALIVE)], [("stop", 1, "drain")]),
        (entry(1, "pause"), [view(1, ALIVE)], [("stop", 1, "pause")]),
        (entry(1, "pause"), [view(1, ALIVE, stopping="pause")], []),
        (entry(1, "stop"), [view(1, ALIVE, stopping="pause")], [("stop", 1, "cancel")]),
        (entry(1, "stop"), [], [("end", 1, "cancel")]),
        (entry(1, "pause"), [view(1, NEW)], [("end", 1, "pause")]),
        (entry(1, "stop"), [view(1, ENDED)], []),
        (entry(1, "collect"), [], [("collect", 1, None)]),
        (entry(1, "collect"), [view(1, ALIVE)], [("stop", 1, "cancel")]),
        (entry(1, "collect"), [view(1, GONE)], []),
        (entry(1, "collect"), [view(1, ENDED)], [("collect", 1, None)]),
        (entry(1, "collect"), [view(1, ENDED, collected=True)], []),
        (None, [view(1, ALIVE)], [("stop", 1, "requeue")]),
        (None, [view(1, NEW)], [("end", 1, "requeue")]),
        (None, [view(1, ENDED)], []),
    ],
)
def test_table(
    wanted: ControlEntry | None, runs: list[RunView], expected: list[tuple[str, int, str | None]]
) -> None:
    assert decide(wanted, *runs) == expected


def test_absent_means_nothing_without_the_epoch() -> None:
    assert decide(None, view(1, ALIVE), view(2, NEW), complete=False) == []


def test_drained_host_refuses_and_still_stops() -> None:
    assert decide(entry(1), accepting=False) == [("refuse", 1, None)]
    assert decide(entry(1, "stop"), view(1, ALIVE), accepting=False) == [("stop", 1, "cancel")]


def test_collect_does_not_wait_long() -> None:
    (action,) = reconcile(
        {"j": entry(1, "collect", grace_seconds=600)},
        [view(1, ALIVE)],
        complete=False,
        accepting=True,
    )
    assert isinstance(action, Stop)
    assert action.grace == 10


@pytest.mark.parametrize(
    ("stopping", "mode", "grace"),
    [(None, "stop", 600), ("pause", "stop", 10), ("drain", "stop", 10), ("drain", "pause", 600)],
)
def test_a_cancel_does_not_wait_for_another_stop(
    stopping: str | None, mode: str, grace: float
) -> None:
    (action,) = reconcile(
        {"j": entry(1, mode, grace_seconds=600)},
        [view(1, ALIVE, stopping=stopping)],
        complete=False,
        accepting=True,
    )
    assert isinstance(action, Stop)
    assert action.grace == grace


def apply(actions: tuple[Action, ...], runs: dict[int, RunView]) -> None:
    """What the runner makes of the actions, each one done to its end."""
    for action in actions:
        match action:
            case Start(e):
                assert all(r.phase not in (ALIVE, GONE) for r in runs.values())
                runs[e.attempt] = view(e.attempt, ALIVE)
            case Refuse(e):
                runs[e.attempt] = view(e.attempt, ENDED)
            case Collect(e):
                runs.clear()
                runs[e.attempt] = view(e.attempt, ENDED, collected=True)
            case Stop(_, n, _, _) | EndUnstarted(_, n, _):
                runs[n] = view(n, ENDED)


views = st.dictionaries(
    st.integers(1, 4),
    st.tuples(st.sampled_from(list(Phase)), st.sampled_from([None, "pause", "cancel", "requeue"])),
    max_size=4,
)
wanted = st.none() | st.builds(
    entry, st.integers(1, 5), st.sampled_from(["run", "pause", "stop", "collect"])
)


@settings(max_examples=400, deadline=None)
@given(wanted, views, st.booleans(), st.booleans())
def test_properties(
    desired: ControlEntry | None,
    known: dict[int, tuple[Phase, str | None]],
    complete: bool,
    accepting: bool,
) -> None:
    runs = {n: view(n, p, stopping=s if p is ALIVE else None) for n, (p, s) in known.items()}
    entries = {"j": desired} if desired else {}
    if desired is None and not complete:
        assert reconcile(entries, [*runs.values()], complete=False, accepting=accepting) == ()
    for _ in range(6):
        actions = reconcile(entries, [*runs.values()], complete=complete, accepting=accepting)
        starts = [a for a in actions if isinstance(a, Start)]
        assert len(starts) <= 1
        for start in starts:
            assert accepting
            assert all(
                n <= start.entry.attempt and r.phase not in (ALIVE, GONE) for n, r in runs.items()
            )
        if not actions:
            break
        apply(actions, runs)
        # what was being stopped or judged comes to its end by itself
        runs = {
            n: replace(r, phase=ENDED) if r.stopping or r.phase is GONE else r
            for n, r in runs.items()
        }
    else:
        pytest.fail("no end of actions")
    assert sum(r.phase is ALIVE for r in runs.values()) <= max(
        1, sum(p is ALIVE for p, _ in known.values())
    )
