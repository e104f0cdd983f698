"""Many seeds at once, and what must have happened among them: a fault that never strikes proves nothing."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence

from tests.faults.simulation.engine import Violation
from tests.faults.simulation.world import simulate

SOMETIMES = (
    "a message was lost",
    "a message was slow",
    "a message was stored twice",
    "an acknowledgement was lost",
    "a write was carried out late",
    "a host was cut off: both",
    "a host was cut off: out",
    "a host was cut off: back",
    "a host was frozen",
    "a host slept",
    "a host lost power",
    "a host was struck at a start",
    "a host was struck at a launch",
    "a host was struck at an answer",
    "a host came back as its attempt was given away",
    "the store hung",
    "a rival was cut off",
    "a leader with a rival was frozen",
    "another leader",
    "a deposed leader was refused",
    "a deposed leader was asked",
    "a shim found the lease of its start over",
    "a shim was killed",
    "a shim stopped its trainer",
    "a shim killed its trainer",
    "a trainer was killed",
    "an agent was killed",
    "agent crashed before_started_fact",
    "agent crashed exited_written",
    "agent crashed relay",
    "api crashed request_published",
    "api crashed before_store",
    "api crashed between_databases",
    "api crashed after_store",
    "scheduler crashed before_commit",
    "scheduler crashed after_commit",
    "scheduler crashed after_publish",
    "scheduler crashed before_mark_published",
    "scheduler crashed after_write",
    "the broker was restarted",
    "the broker was wiped",
    "metrics were lost with the broker",
    "the clock of a host was fast by 2 %",
    "the clock of a host was slow by 2 %",
    "the clock of a scheduler was fast by 2 %",
    "the clock of a scheduler was slow by 2 %",
    "an attempt was fenced",
    "the scheduler counted: fact_of_stale_attempt",
    "the scheduler counted: stale_attempt_alive",
)
"""Each happens among any 500 seeds."""


def keeps_every_promise(seeds: Sequence[int]) -> None:
    """Run them all. Raises AssertionError with the trace of the first violation, or the faults that did not happen."""
    gc.collect()
    gc.freeze()  # the product's own modules are most of the heap, and the collector runs often here
    seen: Counter[str] = Counter()
    attempts = 0
    found: list[str] = []
    try:
        for seed in seeds:
            try:
                outcome = simulate(seed)
            except Violation as violation:
                found.append(str(violation))
                continue
            seen.update(dict(outcome.seen))
            attempts += outcome.attempts
            assert outcome.events > 500
    finally:
        gc.unfreeze()
    assert not found, f"{len(found)} seeds, the first of them: {found[0]}"
    assert attempts > len(seeds)
    assert not [what for what in SOMETIMES if not seen[what]], "never happened"
