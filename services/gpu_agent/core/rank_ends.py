"""From the ends of all ranks of one attempt to its own: whose words count, or by which signal it died."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from shared.runs import RunResult


@dataclass(frozen=True, slots=True)
class RankEnd:
    """How one rank ended. Signal and exit code are those seen before the launcher began to end the others."""

    rank: int
    result: RunResult | None = None
    written: int = 0
    """When the result was written; comparable between ranks of one host."""
    signal: int | None = None
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """What the launcher passes on: a result, or a signal, or a bare exit code."""

    result: RunResult | None = None
    signal: int | None = None
    code: int = 0


def together(ends: Sequence[RankEnd], *, asked: bool) -> Ended:
    """Return the end of the attempt; `asked`: a stop had been asked for.

    A rank that was killed says nothing, and all others then fail for want of it; so a signal counts first, but for the
    SIGTERM that the launcher sends to those that are left. Of several failures the first one is the cause. A rank writes
    its result before its connections close.
    """
    first = next((e.result for e in ends if e.rank == 0), None)
    if asked and first is not None and first.outcome != "failed":
        return Ended(first)
    killed = [e for e in ends if e.signal is not None and e.result is None]
    failed = sorted(
        (e for e in ends if e.result is not None and e.result.outcome == "failed"),
        key=lambda e: e.written,
    )
    # the launcher ends the others by SIGTERM, and one of them may be gone before it looks how all ended
    cause = next((e for e in killed if e.signal != signal.SIGTERM), None)
    if cause is None and killed and (asked or not failed):
        cause = killed[0]
    if cause is not None:
        if asked and cause.signal in (
            signal.SIGTERM,
            signal.SIGUSR2,
        ):  # it came before the rank could listen
            return Ended(RunResult(outcome="stopped"))
        return Ended(signal=cause.signal, code=1)
    if failed:
        return Ended(_of_rank(failed[0], first), code=1)
    mute = [e for e in ends if e.result is None]
    if mute or first is None:
        return Ended(code=next((e.code for e in mute if e.code), 1))
    return Ended(first)


def _of_rank(end: RankEnd, first: RunResult | None) -> RunResult:
    """Return a rank's failure with what only the first rank knows: how far the run was, and its checkpoint."""
    assert end.result is not None
    if end.rank == 0:
        return end.result
    known = {} if first is None else {
        "step": first.step,
        "total_steps": first.total_steps,
        "final_metrics": first.final_metrics,
        "last_checkpoint": first.last_checkpoint,
    }  # fmt: skip
    said = end.result.message
    return end.result.model_copy(
        update=known
        | {
            "message": f"Rank {end.rank}: {said}" if said else None,
            "message_zh": f"进程 {end.rank}：{end.result.message_zh}"
            if end.result.message_zh
            else None,
        }
    )
