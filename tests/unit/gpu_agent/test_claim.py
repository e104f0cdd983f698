"""Whoever claims an attempt first, a shim that begins it or an agent that closes it, has it for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.gpu_agent import shim
from services.gpu_agent.core.exits import Ending
from services.gpu_agent.layout import JobFiles
from services.gpu_agent.run import Begun, Run
from services.gpu_agent.spool import AttemptSpool
from services.gpu_agent.starting import refuse
from shared.clock import SystemClock
from shared.jobs.reasons import Reason


@pytest.fixture
def run(tmp_path: Path) -> Run:
    files = JobFiles(tmp_path / "job")
    files.attempt(1).root.mkdir(parents=True)
    clock = SystemClock()
    return Run(files.attempt(1), files, AttemptSpool(files, 1, now=clock.boot()), clock)


def begin(run: Run) -> list[int]:
    launch = {"locks": [str(run.job_files.lock)], "holder": f"{run.job} 1\n"}
    return shim.begin(str(run.files.root), launch)


def test_a_shim_that_comes_after_the_last_fact_begins_nothing(run: Run) -> None:
    run.end(Ending(outcome="failed", reason=Reason.START_FAILED))
    with pytest.raises(FileExistsError):
        begin(run)
    assert not run.files.pid.exists()


def test_an_attempt_that_has_begun_is_not_closed_as_never_started(run: Run) -> None:
    begin(run)
    with pytest.raises(Begun):
        run.end(Ending(outcome="stopped", stop_cause="cancel"))
    with pytest.raises(Begun):
        refuse(run, Reason.HOST_DRAINED, "drained", "drained")
    assert not run.spool.facts.is_closed


def test_an_agent_that_was_killed_before_the_fact_closes_it_the_next_time(run: Run) -> None:
    run.bar()
    run.end(Ending(outcome="stopped", stop_cause="cancel"))
    assert run.spool.facts.is_closed
