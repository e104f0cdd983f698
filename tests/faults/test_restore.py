"""Backup and restore of a stack at work, with the broker's store kept and with it lost, and a backup during a storm of submits."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from services.gpu_agent.processes import RunProcesses
from tests.e2e.stack import Stack, until
from tests.faults.restoring import Story, command, restored
from tests.faults.workload import insist, tiny_job

pytestmark = pytest.mark.e2e
STORM_THREADS = 4


def assert_steady(home: Path, story: Story, seen: Any) -> None:
    """The trainer that ran all along is the one that ended the job."""
    (steady,) = [job for job in seen.jobs if job.uuid == story.jobs["steady"]]
    assert [a.number for a in steady.attempts] == [1]
    folder = home / "agents" / "local" / "jobs" / steady.uuid / "attempts" / "1"
    processes = RunProcesses.read(folder / "pid.json")
    assert processes is not None
    assert processes.trainer is not None
    assert processes.trainer.pid == story.trainer


def assert_frames_go_on(story: Story, home: Path) -> None:
    """No job's frame number is below what a client had seen."""
    with contextlib.closing(sqlite3.connect(home / "api" / "telemetry.db")) as database:
        now = dict(database.execute("SELECT job, frame_seq FROM job_live"))
    for job in story.jobs.values():
        assert now[job] > story.frames.get(job, 0)


def test_every_request_before_and_after_the_backup_is_there_once(
    tmp_path: Path, tiny_model: Path, seed: int
) -> None:
    report, story, seen = restored(tmp_path / "home", tiny_model, seed, keep_bus=True)
    print(report)
    assert report.violations == [], str(report)
    assert_steady(tmp_path / "home", story, seen)
    assert_frames_go_on(story, tmp_path / "home")


@pytest.mark.nightly
def test_with_the_broker_lost_too_all_up_to_the_backup_is_right(
    tmp_path: Path, tiny_model: Path, seed: int
) -> None:
    report, story, seen = restored(tmp_path / "home", tiny_model, seed, keep_bus=False)
    print(report)
    assert report.violations == [], str(report)
    assert_steady(tmp_path / "home", story, seen)
    assert_frames_go_on(story, tmp_path / "home")


def unmark(home: Path) -> None:
    """The planted bug: databases put back without telling the services."""
    for name, table, column in (
        ("scheduler.db", "positions", "name"),
        ("api/main.db", "projection_position", "stream"),
    ):
        with contextlib.closing(sqlite3.connect(home / name)) as database:
            database.execute(f"DELETE FROM {table} WHERE {column} = 'restored'")
            database.commit()


@pytest.mark.nightly
def test_the_proof_finds_a_restore_that_does_not_catch_up(
    tmp_path: Path, tiny_model: Path, seed: int
) -> None:
    report, _, _ = restored(tmp_path / "home", tiny_model, seed, keep_bus=True, sabotage=unmark)
    print(report)
    assert report.violations != []


def test_a_backup_during_a_storm_of_submits_holds_all_that_was_acknowledged_before(
    tmp_path: Path, tiny_model: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    stack = Stack(home)
    acknowledged: list[str] = []
    enough = threading.Event()
    try:
        stack.start()
        body = tiny_job(tiny_model, host="nowhere")

        def storm() -> None:
            while not enough.is_set():
                job = insist(
                    lambda: stack.client.jobs.submit(body, idempotency_key=str(uuid.uuid4()))
                )
                acknowledged.append(job.uuid)

        threads = [threading.Thread(target=storm) for _ in range(STORM_THREADS)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(2):
                until(lambda n=turn: len(acknowledged) >= 20 * (n + 1), 60, "a storm", stack)  # type: ignore[misc]
                before = list(acknowledged)
                command(stack, "backup", "--out", str(tmp_path / f"{turn}.tar"))
                during = len(acknowledged) - len(before)
                fresh = Stack(tmp_path / f"fresh{turn}")
                command(fresh, "restore", str(tmp_path / f"{turn}.tar"))
                assert_consistent(fresh.home, before)
                print(f"{len(before)} acknowledged before, {during} during the backup")
        finally:
            enough.set()
            for thread in threads:
                thread.join(60)
        assert "pid" in command(stack, "restore", str(tmp_path / "0.tar"), "--force", expect=1)
    finally:
        if stack.process is not None:
            stack.stop()


def assert_consistent(home: Path, acknowledged: list[str]) -> None:
    """Both services' copies are of one moment: neither holds what the other has not said."""
    with contextlib.closing(sqlite3.connect(home / "api" / "main.db")) as main:
        theirs = {
            row[0]: row[1:]
            for row in main.execute("SELECT uuid, req_n, job_n, answered_n FROM job")
        }
        asked = {
            row[0].removeprefix("job:")
            for row in main.execute("SELECT key FROM request WHERE type LIKE '%submit%'")
        }
    with contextlib.closing(sqlite3.connect(home / "scheduler.db")) as own:
        mine = dict(own.execute("SELECT id, json_extract(state, '$.job_n') FROM jobs"))
    assert set(acknowledged) <= theirs.keys()
    assert theirs.keys() == asked
    assert mine.keys() <= theirs.keys()
    for job, (req_n, job_n, answered_n) in theirs.items():
        assert answered_n <= req_n
        assert job_n <= mine.get(job, 0)
