"""Where an attempt goes on after one that was cut off: nothing is taken up whose steps nobody will ever see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from services.gpu_agent import checkpoint_store
from services.gpu_agent.hooks import resume
from services.gpu_agent.hooks.context import HookContext
from services.gpu_agent.layout import HostFiles
from services.gpu_agent.starting import _corrections
from shared.events.calls import ControlEntry

Make = Callable[..., HookContext]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make attempt 2; `known`: steps of the checkpoints that the scheduler knows."""

    def context(*known: int, **fields: object) -> HookContext:
        wanted = {"epoch": "e", "job": "job1", "attempt": 2, "desired": "run", "resume": True}
        entry = ControlEntry.model_validate(wanted | {"checkpoints": known} | fields)
        host = HostFiles(tmp_path / "agent", tmp_path / "agent" / "jobs", tmp_path / "ckpt")
        made = HookContext(entry, host, None, tmp_path, "cpu", 8000)
        made.attempt_files.root.mkdir(parents=True, exist_ok=True)
        return made

    return context


def saved(folder: Path, step: int) -> Path:
    part = checkpoint_store.begin(folder, step)
    (part / "model.safetensors").write_bytes(b"weights of %d" % step)
    return checkpoint_store.publish(part, step, "full", 1.0, {}, {}).path


def resumed(context: HookContext) -> int | None:
    assert context.resume_from is not None
    return checkpoint_store.step_in(context.resume_from.name)


def ran_here(context: HookContext, attempt: int, *, started: bool = True) -> None:
    files = context.job_files.attempt(attempt)
    files.root.mkdir(parents=True, exist_ok=True)
    if started:
        files.pid.write_text("{}")


def test_on_another_host_only_what_the_scheduler_knows_counts(make: Make) -> None:
    context = make(10, 20)
    for step in (10, 20, 30):
        saved(context.checkpoint_dir, step)
    assert resume.check(context) is None
    assert resumed(context) == 20
    assert _corrections(context) == [], "the one that was skipped is not announced either"
    assert any("checkpoint-30" in text for _, text in context.notes)


def test_on_another_host_what_took_the_place_of_the_newest_known_one_counts(make: Make) -> None:
    """The host that was cut off has removed it by the retention rule: else the job would begin anew."""
    context = make(0, 10, 20)
    for step in (0, 30, 40):
        saved(context.checkpoint_dir, step)
    assert resume.check(context) is None
    assert resumed(context) == 40
    told = [(fact.step, fact.deleted) for fact in _corrections(context)]
    assert told == [(10, True), (20, True), (30, False), (40, False)]


def test_on_the_same_host_all_that_was_saved_counts_and_is_told(make: Make) -> None:
    context = make(10, 20)
    for step in (20, 30):
        saved(context.checkpoint_dir, step)
    ran_here(context, 1)
    assert resume.check(context) is None
    assert resumed(context) == 30
    told = [(fact.step, fact.deleted) for fact in _corrections(context)]
    assert told == [(10, True), (30, False)], "the retention rule took 10 while nobody listened"


def test_an_attempt_that_never_started_here_does_not_make_it_the_same_host(make: Make) -> None:
    context = make(10, attempt=3)
    for step in (10, 30):
        saved(context.checkpoint_dir, step)
    ran_here(context, 2, started=False)
    assert resume.check(context) is None
    assert resumed(context) == 10
    ran_here(context, 1)
    assert resume.check(context) is None
    assert resumed(context) == 30


def test_a_scheduler_that_does_not_tell_limits_nothing(make: Make) -> None:
    context = make()
    saved(context.checkpoint_dir, 30)
    assert resume.check(context) is None
    assert resumed(context) == 30


def test_what_was_skipped_once_stays_skipped_until_it_is_saved_anew(make: Make) -> None:
    second = make(10)
    for step in (10, 20):
        saved(second.checkpoint_dir, step)
    assert resume.check(second) is None
    ran_here(second, 2)
    third = make(10, attempt=3)
    assert resume.check(third) is None
    assert (resumed(third), _corrections(third)) == (10, [])
    part = checkpoint_store.begin(third.checkpoint_dir, 20)
    (part / "model.safetensors").write_bytes(b"weights of 20, reached from 10")
    checkpoint_store.publish(part, 20, "full", 2.0, {}, {})
    fourth = make(10, attempt=4)
    ran_here(fourth, 3)
    assert resume.check(fourth) is None
    assert resumed(fourth) == 20
