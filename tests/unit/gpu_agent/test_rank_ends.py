"""Whose words count when several ranks of one attempt have ended."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from services.gpu_agent.core.rank_ends import Ended, RankEnd, together
from shared.jobs.reasons import Reason
from shared.runs import RunResult

DONE = RunResult(outcome="completed", step=8, total_steps=8)
STOPPED = RunResult(outcome="stopped", stop_cause="pause", step=3, total_steps=8)
LOST_PEER = RunResult(
    outcome="failed",
    reason=Reason.CODE_ERROR,
    message="RuntimeError: Connection closed by peer",
    step=5,
    total_steps=8,
    last_checkpoint=Path("/c/checkpoint-4"),
)
OOM = RunResult(
    outcome="failed", reason=Reason.CUDA_OOM, message="out of memory", message_zh="显存不足"
)


def test_the_first_rank_speaks_for_all_that_ended_well() -> None:
    other = RunResult(outcome="completed")
    assert together([RankEnd(0, DONE), RankEnd(1, other)], asked=False) == Ended(DONE)
    stopped = [RankEnd(0, STOPPED), RankEnd(1, RunResult(outcome="stopped"))]
    assert together(stopped, asked=True) == Ended(STOPPED)


def test_the_first_failure_is_the_cause_and_the_first_rank_knows_how_far_it_was() -> None:
    ends = [RankEnd(0, LOST_PEER, written=20, code=1), RankEnd(1, OOM, written=10, code=1)]
    ended = together(ends, asked=False)
    assert ended.code == 1
    assert ended.result is not None
    assert (ended.result.reason, ended.result.message) == (Reason.CUDA_OOM, "Rank 1: out of memory")
    assert ended.result.message_zh == "进程 1：显存不足"
    assert (ended.result.step, ended.result.last_checkpoint) == (5, LOST_PEER.last_checkpoint)
    first = [RankEnd(0, OOM, written=5, code=1), RankEnd(1, LOST_PEER, written=6, code=1)]
    assert together(first, asked=False) == Ended(OOM, code=1)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_the_cause_of_what_the_others_say(rank: int) -> None:
    killed = RankEnd(rank, signal=signal.SIGKILL, code=-9)
    other = RankEnd(1 - rank, LOST_PEER, written=1, code=1)
    assert together([killed, other], asked=False) == Ended(signal=signal.SIGKILL, code=1)
    assert together([killed, other], asked=True).signal == signal.SIGKILL


@pytest.mark.parametrize("rank", [0, 1])
def test_what_the_launcher_ends_is_not_the_cause(rank: int) -> None:
    ended_by_launcher = RankEnd(1 - rank, signal=signal.SIGTERM, code=-15)
    killed = RankEnd(rank, signal=signal.SIGKILL, code=-9)
    for ends in ([killed, ended_by_launcher], [ended_by_launcher, killed]):
        assert together(ends, asked=False) == Ended(signal=signal.SIGKILL, code=1)
    failed = together([ended_by_launcher, RankEnd(rank, OOM, written=1, code=1)], asked=False)
    assert failed.result is not None
    assert failed.result.reason == Reason.CUDA_OOM
    alone = [ended_by_launcher, RankEnd(rank, DONE)]
    assert together(alone, asked=False) == Ended(signal=signal.SIGTERM, code=1)


def test_a_stop_that_came_before_a_rank_could_listen_is_a_stop() -> None:
    deaf = RankEnd(1, signal=signal.SIGUSR2, code=-12)
    ended = together([RankEnd(0), deaf], asked=True)
    assert ended == Ended(RunResult(outcome="stopped"))
    assert together([RankEnd(0), deaf], asked=False).signal == signal.SIGUSR2


def test_a_good_end_of_the_first_rank_counts_once_a_stop_was_asked_for() -> None:
    assert together([RankEnd(0, STOPPED), RankEnd(1, LOST_PEER, written=1)], asked=True) == Ended(
        STOPPED
    )


def test_ranks_without_a_word_leave_their_exit_code() -> None:
    assert together([RankEnd(0), RankEnd(1, code=75)], asked=False) == Ended(code=75)
    assert together([RankEnd(0, DONE), RankEnd(1)], asked=False) == Ended(code=1)
